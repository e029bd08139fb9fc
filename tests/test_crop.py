"""Crops of random size against torchvision's, how a net is tested, and what a checkpoint says of it."""
import argparse
import json
import math

import numpy as np
import pytest
import torch
from conftest import CLASSES, CPU, data_options
from PIL import Image
from torchvision.transforms import v2

import dataset
import train_student
import train_teacher
from dataset.crop import DEFAULTS, Pipeline, RandomResizedCrop, draw_box, resize_to_square
from dataset.folder import scan
from dataset.jpeg import resize_box
from dataset.memory import MemoryLoader
from dataset.normalise import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD
from dataset.worker_loader import WorkerLoader
from helper.checkpoint import load_checkpoint
from helper.cli import current_options
from helper.errors import UserError
from models.start import Start
from option_checkpoints import set_crop_options, set_preprocessing
from option_checks import check_crop
from options import student_options, teacher_options


def noise(width, height, seed=0):
    """An RGB image of smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """A data folder: 4 classes of 6 training and 3 test images, each with a shape of its own."""
    root, rng = tmp_path_factory.mktemp('photographs'), np.random.default_rng(0)
    for split, count in (('train', 6), ('test', 3)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                width, height = rng.integers(40, 160, 2).tolist()
                noise(width, height, 10 * label + i).save(root / split / name / f'{i}.png')
    return root


def kolmogorov_smirnov(ours, theirs):
    """The largest difference between the distributions of two sorted samples."""
    shares = [np.searchsorted(values, [*ours, *theirs], 'right') / len(values) for values in (ours, theirs)]
    return np.abs(shares[0] - shares[1]).max()


BOXES = {'usual': (160, 120, (0.08, 1.0), (3 / 4, 4 / 3)), 'tall': (50, 300, (0.08, 1.0), (3 / 4, 4 / 3)),
         'wide': (300, 40, (0.5, 1.0), (3 / 4, 4 / 3)), 'small': (3, 5, (0.01, 0.1), (0.5, 2.0)),
         'whole': (64, 64, (1.0, 1.0), (1.0, 1.0)), 'never': (400, 30, (0.9, 1.0), (1.0, 1.0))}


@pytest.mark.parametrize('case', BOXES)
def test_the_box_is_torchvisions(case):
    """Its edges and its sides are distributed as torchvision's, also where no crop lies within the image."""
    width, height, scale, ratio = BOXES[case]
    theirs, image, n = v2.RandomResizedCrop(8, scale=scale, ratio=ratio), Image.new('RGB', (width, height)), 500
    torch.manual_seed(0)
    wanted = [tuple(theirs.make_params([image])[name] for name in ('left', 'top', 'width', 'height')) for _ in range(n)]
    boxes = [draw_box(width, height, scale, ratio) for _ in range(n)]
    assert all(0 <= left < right <= width and 0 <= top < bottom <= height for left, top, right, bottom in boxes)
    drawn = [(left, top, right - left, bottom - top) for left, top, right, bottom in boxes]
    for values in zip(np.sort(drawn, 0).T, np.sort(wanted, 0).T, strict=True):
        assert kolmogorov_smirnov(*values) < 1.95 * math.sqrt(2 / n)        # p 0.001


@pytest.mark.parametrize('images_in', ['memory', 'disk'])
def test_crops_of_an_epoch(photographs, images_in, monkeypatch):
    """A loader cuts every box by one call of the image; their areas and shapes are distributed as torchvision's."""
    boxes = []

    def record(image, size, resample, box):
        left, top, right, bottom = box
        boxes.append(((right - left) * (bottom - top) / math.prod(image.size), (right - left) / (bottom - top)))
        return resize_box(image, size, resample, box)
    opt = data_options(data_dir=str(photographs), image_size=24, crop='resized', images_in=images_in, num_workers=0)
    data = dataset.get_dataloaders(opt, CPU)
    source = data.train_loader.loader.dataset.source
    sizes = [source.read(i).size for i in range(24)]
    with monkeypatch.context() as patch:
        patch.setattr(dataset.crop, 'resize_box', record)
        for _ in range(15):
            for images, target, index in data.train_loader:
                assert images.shape[1:] == (3, 24, 24) and target.equal(data.labels[index])
    assert len(boxes) == 15 * 24
    torch.manual_seed(0)
    drawn, crop = [], v2.RandomResizedCrop(24)
    for _ in range(15):
        for size in sizes:
            wanted = crop.make_params([Image.new('RGB', size)])
            drawn.append((wanted['width'] * wanted['height'] / math.prod(size), wanted['width'] / wanted['height']))
    for ours, theirs in zip(np.sort(boxes, 0).T, np.sort(drawn, 0).T, strict=True):     # areas, then shapes
        assert kolmogorov_smirnov(ours, theirs) < 1.95 * math.sqrt(2 / len(ours))     # p 0.001
    if images_in == 'memory':       # a shorter side of at most 1.5 times 24 pixels
        assert max(min(size) for size in sizes) == 36


def test_one_resize_cuts_and_scales(monkeypatch):
    image, calls = noise(90, 60), []
    monkeypatch.setattr(dataset.crop, 'resize_box', lambda image, *arguments: calls.append(arguments))
    torch.manual_seed(0)
    box = draw_box(90, 60)
    torch.manual_seed(0)
    RandomResizedCrop(16, (0.08, 1.0), (3 / 4, 4 / 3), 'bicubic')(image)
    assert calls == [((16, 16), Image.Resampling.BICUBIC, box)]
    random = RandomResizedCrop(16, (0.08, 1.0), (3 / 4, 4 / 3), 'random')
    for _ in range(15):
        random(image)
    assert {resample for _, resample, _ in calls[1:]} == {Image.Resampling.BILINEAR, Image.Resampling.BICUBIC}


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('crop_pct', [0.875, 0.95, 0.8])
@pytest.mark.parametrize('size', [(100, 75), (33, 120), (64, 64), (20, 31)])
def test_a_test_image_is_torchvisions(size, crop_pct, interpolation):
    image, mode = noise(*size), v2.InterpolationMode(interpolation)
    wanted = v2.Compose([v2.Resize(round(48 / crop_pct), mode), v2.CenterCrop(48)])(image)
    assert np.array_equal(resize_to_square(image, 48, 'crop', crop_pct, interpolation), wanted)


def test_a_long_strip():
    """The centre is cut out before it is scaled: the whole image would have 10^10 pixels."""
    strip = Image.new('RGB', (10**6, 4))
    strip.paste((200, 100, 50), (5 * 10**5 - 2, 0, 5 * 10**5 + 2, 4))
    assert resize_to_square(strip, 200, 'crop', 0.5).getcolors() == [(200 * 200, (200, 100, 50))]


def batches(data, loader='test_loader'):
    return [torch.cat(parts) for parts in zip(*getattr(data, loader), strict=True)]


@pytest.mark.parametrize('fit', ['crop', 'pad'])
def test_memory_and_disk_test_alike(photographs, fit):
    """Memory, disk and predict.py give the same test images, with crop_pct only for --fit crop."""
    opt = data_options(data_dir=str(photographs), image_size=24, crop='resized', num_workers=0, fit=fit, normalise=None)
    memory, disk = (dataset.get_dataloaders(argparse.Namespace(**{**vars(opt), 'images_in': where}), CPU)
                    for where in ('memory', 'disk'))
    assert all(a.equal(b) for a, b in zip(batches(memory), batches(disk), strict=True))
    assert memory.inputs == disk.inputs and memory.inputs['crop_pct'] == (0.875 if fit == 'crop' else 1.0)
    assert memory.normalisation == 'measured'
    image = scan(photographs)[0]['test'].read(5)
    assert memory.test_loader.images[5].equal(Pipeline(**memory.inputs).transform(train=False)(image))
    first, again = (batches(dataset.get_dataloaders(opt, CPU), 'train_loader') for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize('images_in', ['memory', 'disk'])
def test_an_epoch_is_continued_and_shared(photographs, images_in):
    """The batches after an interruption, and the parts of two processes, equal those of a whole epoch."""
    opt = data_options(data_dir=str(photographs), image_size=24, crop='resized', images_in=images_in, num_workers=0,
                       batch_size=8, color_jitter=0.4)
    loader = dataset.get_dataloaders(opt, CPU, views=('weak', 'strong')).train_loader
    state, whole = loader.order.generator.get_state(), list(loader)
    loader.order.generator.set_state(state)
    loader.order.first_batch = 1
    for a, b in zip(whole[1:], loader, strict=True):
        assert all(x.equal(y) for x, y in zip(a, b, strict=True))
    settings = {'train': True, 'views': ('weak', 'strong'), 'world_size': 2,
                'pipeline': Pipeline(24, CIFAR_MEAN, CIFAR_STD, color_jitter=0.4)}
    opt.batch_size = 4
    parts = [WorkerLoader(loader.loader.dataset.source, opt, CPU, rank=rank, **settings) for rank in (0, 1)]
    for batch, a, b in zip(whole, *parts, strict=True):
        assert batch[0].equal(torch.cat([a[0], b[0]], 1)) and batch[2].equal(torch.cat([a[2], b[2]]))


@pytest.mark.parametrize('images_in', ['memory', 'disk'])
def test_flips(photographs, images_in):
    """A probability of 0 never flips, and 1 always."""
    opt = data_options(data_dir=str(photographs), image_size=24, crop='resized', images_in=images_in, num_workers=0)

    def epoch(hflip, vflip):
        changed = argparse.Namespace(**{**vars(opt), 'hflip': hflip, 'vflip': vflip})
        images, _, index = batches(dataset.get_dataloaders(changed, CPU), 'train_loader')
        return images[index.argsort()]
    plain = epoch(0, 0)
    assert epoch(1, 0).equal(plain.flip(3)) and epoch(0, 1).equal(plain.flip(2))
    assert epoch(1, 1).equal(plain.flip(2, 3))


def test_flips_of_padded_crops():
    """In memory; other probabilities than the usual flip as many images."""
    images, target = torch.randint(0, 256, (400, 3, 4, 4), dtype=torch.uint8), torch.zeros(400, dtype=torch.int64)
    images[:] = torch.arange(16, dtype=torch.uint8).view(4, 4) + 1

    def epoch(**flips):
        loader = MemoryLoader(images, target, 400, CPU, train=True, **flips)
        loader.windows = loader.windows[:, 4:5, 4:5].expand(-1, 9, 9, -1, -1, -1)       # without a crop
        return loader.normalise.to_pixels(next(iter(loader))[0])[..., 0]
    plain = epoch(hflip=0)
    assert plain.eq(images[0, 0]).all()
    assert epoch(hflip=1).equal(plain.flip(2)) and epoch(hflip=0, vflip=1).equal(plain.flip(1))
    part = epoch(hflip=0.2).ne(plain).flatten(1).any(1).float().mean().item()
    assert abs(part - 0.2) < 4 * math.sqrt(0.16 / 400)


def test_color_jitter(photographs):
    """It changes the colours of the weak view alone, by as much as torchvision's."""
    image, plain = Image.new('RGB', (9, 9), (100, 120, 140)), Pipeline(9, color_jitter=0.0).transform(train=True)
    jitter, strong = (Pipeline(9, color_jitter=0.4).transform(train=True, view=view) for view in ('weak', 'strong'))
    assert plain(image)[0, 0].tolist() == [100, 120, 140]
    values = torch.stack([jitter(image)[0, 0] for _ in range(50)]).float()
    assert 10 < values.std(0).mean() < 60
    assert strong(image).shape == (9, 9, 3)
    opt = data_options(data_dir=str(photographs), image_size=24, crop='resized', num_workers=0)
    data = dataset.get_dataloaders(opt, CPU, views=('weak', 'strong'))
    assert next(iter(data.train_loader))[0].shape == (2, 16, 3, 24, 24)


NORMALISATIONS = {      # options, inputs -> where mean and deviation are from, and the mean
    'small': ({'image_size': 24}, None, 'measured', None),
    'large': ({'image_size': 64}, None, "ImageNet's", IMAGENET_MEAN),
    'usual': ({'image_size': 64, 'normalise': 'usual'}, None, "CIFAR's", CIFAR_MEAN),
    'measure': ({'image_size': 64, 'normalise': 'measure'}, None, 'measured', None),
    'digits': ({'dataset': 'digits'}, None, "CIFAR's", CIFAR_MEAN),
    'pretrained': ({'image_size': 64}, {'mean': [0.5] * 3, 'std': [0.4] * 3}, "the pretrained net's", (0.5,) * 3),
    'a flag': ({'image_size': 64, 'normalise': 'usual'}, {'mean': [0.5] * 3, 'std': [0.4] * 3}, "CIFAR's", CIFAR_MEAN),
}


@pytest.mark.parametrize('case', NORMALISATIONS)
def test_normalisation(photographs, case):
    changes, inputs, words, mean = NORMALISATIONS[case]
    opt = data_options(**{'data_dir': str(photographs), 'normalise': None, 'num_workers': 1, **changes})
    data = dataset.get_dataloaders(opt, CPU, inputs=inputs)
    assert data.normalisation == words and data.preprocessing.startswith(f'{words}, mean ')
    assert mean is None or data.mean == mean
    images, *_ = next(iter(data.unaugmented_loader()))
    assert mean is not None or images.mean((0, 2, 3)).abs().max() < 0.5


def test_the_preprocessing_of_a_pretrained_net(photographs):
    """Its interpolation and crop_pct are those of the test images; --fit squash has no crop_pct."""
    inputs = {'interpolation': 'bicubic', 'crop_pct': 0.9}
    opt = data_options(data_dir=str(photographs), image_size=24, crop='resized', num_workers=0)
    data = dataset.get_dataloaders(opt, CPU, inputs=inputs)
    assert {**data.inputs, **inputs} == data.inputs
    image = scan(photographs)[0]['test'].read(0)
    wanted = torch.from_numpy(np.array(resize_to_square(image, 24, 'crop', 0.9, 'bicubic')))
    assert data.test_loader.images[0].equal(wanted)
    opt.fit = 'squash'
    assert dataset.get_dataloaders(opt, CPU, inputs=inputs).crop_pct == 1.0


REFUSED = {
    '--image_size 64 --teacher_cache': '--teacher_cache: crops of random size .*; give --crop padded',
    '--image_size 32 --crop resized --teacher_cache': '--teacher_cache: crops of random size .*; give --crop padded',
    '--image_size 32 --scale 0.5 1': '--scale 0.5 1.0: has no effect without --crop resized',
    '--image_size 32 --color_jitter 0.4': '--color_jitter 0.4: has no effect without --crop resized',
    '--image_size 64 --scale 0.5 0.1': '--scale 0.5 0.1: give the smaller number first',
    '--image_size 32 --vflip 0.5 --teacher_cache': '--vflip 0.5: --teacher_cache only stores outputs for crops',
    '--image_size 32 --crop_pct 0.9': '--crop_pct 0.9: has no effect without --crop resized and --fit crop',
    '--dataset imagenet --interpolation bicubic': '--interpolation bicubic: has no effect without --dataset folder',
    '--scale 2 3': '--scale: 2: give a number above 0 and of at most 1',
    '--ratio 0 1': '--ratio: 0: give a number of at least 0.1 and of at most 10',
    '--hflip 2': '--hflip: 2: give a number of at least 0 and of at most 1',
    '--dataset digits --crop padded': '--crop padded: not for --dataset digits; it goes with folder, hf',
    '--dataset imagenet --dali cpu --scale 0.5 1': '--scale 0.5 1.0: DALI augments images itself',
}


@pytest.mark.parametrize('flags', REFUSED)
def test_refused(flags):
    with pytest.raises(UserError, match=REFUSED[flags]):
        student_options(['--path-t', 'x', '--dataset', 'folder', *flags.split()])


def test_color_jitter_with_aa():
    opt = data_options(crop='resized', color_jitter=0.4, aa='original')
    with pytest.raises(UserError, match='--color_jitter 0.4: --aa original changes the colours itself'):
        check_crop(opt)


def test_the_default_follows_the_image_size(photographs, tmp_path, call, capsys):
    """--crop is resolved when the teacher's checkpoint says the image size, before anything is written."""
    assert [teacher_options(['--dataset', 'folder', '--image_size', str(size)]).crop for size in (63, 64)] == \
        ['padded', 'resized']
    assert teacher_options([]).crop is teacher_options(['--dataset', 'imagenet', '--scale', '0.2', '1']).crop is None
    opt = student_options(['--path-t', 'x', '--dataset', 'folder', '--scale', '0.2', '1'])      # of unknown size
    opt.image_size = 96
    set_crop_options(opt)
    assert opt.crop == 'resized' and opt.flags.defaults['crop'] is None


def test_accuracy_at_the_end_is_that_of_evaluate(photographs, tmp_path, call, capsys):
    """Train with crops of random size, resume, and measure the checkpoint; an older state is refused with its flags."""
    flags = ['--dataset', 'folder', '--data_dir', photographs, '--gpu_id', 'cpu', '--num_workers', 0, '--batch_size', 8]
    train = ['--model', 'resnet8', *flags, '--image_size', 64, '--seed', 1, '--save_dir', tmp_path, '--save_freq', 1]
    call(train_teacher.main, *train, '--epochs', 1)
    run = next(tmp_path.glob('models/*'))
    parameters = json.loads((run / 'parameters.json').read_text())
    assert parameters['crop'] == 'resized' and parameters['normalisation'].startswith("ImageNet's, mean 0.485 0.456")
    best = load_checkpoint(str(run / 'resnet8_best.pth'), '')
    assert best['inputs'] == {'mean': [*IMAGENET_MEAN], 'std': [*IMAGENET_STD], 'size': 64, 'fit': 'crop',
                              'interpolation': 'bilinear', 'crop_pct': 0.875}
    assert best['normalisation'] == "ImageNet's"
    metrics = json.loads((run / 'test_best_metrics.json').read_text())
    capsys.readouterr()
    call(train_teacher.main, *flags, '--evaluate', run / 'resnet8_best.pth')
    assert f'top-1 {metrics["test_acc"]:.2f}, top-5 100.00, loss {metrics["test_loss"]:.4f}' in capsys.readouterr().out

    with pytest.raises(SystemExit):
        call(train_student.main, '--path-t', run / 'resnet8_best.pth', '--teacher_cache', *flags)
    assert 'give --crop padded' in capsys.readouterr().err
    state = torch.load(run / 'last.pth', weights_only=False)
    for name in ('crop', *DEFAULTS, 'normalisation'):
        del state['identity'][name]
    state['identity']['normalise'] = 'usual'
    torch.save(state, run / 'last.pth')
    with pytest.raises(SystemExit):
        call(train_teacher.main, *train, '--epochs', 2, '--resume', 'auto')
    assert 'give what it was started with, --crop padded --normalise usual, or' in capsys.readouterr().err
    call(train_teacher.main, *train, '--epochs', 2, '--resume', 'auto', '--crop', 'padded', '--normalise', 'usual')
    assert 'resuming from' in capsys.readouterr().out


INPUTS = {'mean': [0.5] * 3, 'std': [0.5] * 3, 'size': 96, 'interpolation': 'bicubic', 'fit': 'crop', 'crop_pct': 0.95}


@pytest.mark.parametrize('flags, wanted', {
    '': ('bicubic', 0.95, 'bicubic'), '--crop_pct 0.8': ('bicubic', 0.8, 'bicubic'),
    '--interpolation bilinear --crop_pct 0.875': (None, None, 'bilinear'),      # as runs of earlier versions have it
    '--train_interpolation random': ('bicubic', 0.95, 'random'), '--fit pad': ('bicubic', None, 'bicubic'),
    '--image_size 32': ('bicubic', None, 'bilinear'), '--dataset imagenet': (None, None, 'bilinear')}.items())
def test_the_teacher_decides_how_test_images_are_scaled(flags, wanted):
    opt = student_options(['--path-t', 'x', '--dataset', 'folder', *flags.split()])
    set_preprocessing(opt, None, {'inputs': INPUTS})
    assert (opt.interpolation, opt.crop_pct, opt.train_interpolation) == wanted


def test_a_pretrained_student_has_its_own_test_images():
    for inputs, wanted in (({'interpolation': 'bilinear', 'crop_pct': 0.875}, (None, None)),
                           ({'interpolation': 'bilinear'}, (None, 0.95)), ({}, ('bicubic', 0.95))):
        opt = student_options(['--path-t', 'x', '--dataset', 'folder'])
        set_preprocessing(opt, Start('', {}, inputs), {'inputs': INPUTS})
        assert (opt.interpolation, opt.crop_pct) == wanted
    opt = student_options(['--path-t', 'x', '--dataset', 'folder', '--interpolation', 'bilinear'])
    set_preprocessing(opt, Start('', {}, INPUTS), {'inputs': INPUTS})
    assert opt.interpolation == 'bilinear' == dataset.make_pipeline(opt, INPUTS).interpolation


def test_a_student_reads_the_images_of_its_teacher(photographs, tmp_path, call, capsys):
    """The teacher has the same accuracy in both runs. A run of an earlier version keeps the images that it had."""
    flags = ['--dataset', 'folder', '--data_dir', photographs, '--gpu_id', 'cpu', '--num_workers', 0, '--batch_size', 8,
             '--crop', 'resized', '--normalise', 'usual', '--save_dir', tmp_path, '--seed', 1, '--epochs', 1]
    call(train_teacher.main, '--model', 'resnet8', *flags, '--image_size', 24, '--interpolation', 'bicubic',
         '--crop_pct', 0.5)
    teacher, = tmp_path.glob('models/*/resnet8_best.pth')
    accuracy = json.loads((teacher.parent / 'test_best_metrics.json').read_text())['test_acc']
    train = ['--path-t', teacher, '--model_s', 'resnet8', *flags]
    capsys.readouterr()
    call(train_student.main, *train)
    out = capsys.readouterr().out
    assert f'teacher top-1: {accuracy:.2f}\n' in out and '; test images: bicubic, crop_pct 0.5\n' in out
    run, = tmp_path.glob('student_model/*')
    parameters = json.loads((run / 'parameters.json').read_text())
    assert (parameters['interpolation'], parameters['crop_pct'], parameters['train_interpolation']) == \
        ('bicubic', 0.5, 'bicubic')

    state = torch.load(run / 'last.pth', weights_only=False)
    del state['identity']['interpolation'], state['identity']['crop_pct']
    state['identity']['train_interpolation'] = 'bilinear'
    torch.save(state, run / 'last.pth')
    call(train_student.main, *train, '--epochs', 2, '--resume', 'auto')
    assert '; test images: bilinear, crop_pct 0.875\n' in capsys.readouterr().out
    assert load_checkpoint(str(run / 'last.pth'), '')['inputs']['interpolation'] == 'bilinear'


def test_options_of_older_runs():
    """Data with a choice of crops had padded ones; --normalise usual is today's default for CIFAR, not for folder."""
    for name, crop, normalise in (('folder', 'padded', 'usual'), ('hf:x', 'padded', 'usual'), ('cifar100', None, None),
                                  ('imagenet', None, None)):
        options = current_options({'dataset': name, 'normalise': 'usual'})
        assert (options.get('crop'), options['normalise']) == (crop, normalise)
        assert current_options({**options, 'crop': 'resized'})['crop'] == 'resized'
