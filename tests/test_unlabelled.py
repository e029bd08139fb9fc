"""--unlabelled: training images without labels, beside the labelled ones and alone."""
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, assert_same, build, data_options, losses_of_epoch, options, outcome, write_images

import train_student
from dataset import get_dataloaders
from dataset.teacher_cache.loader import TeacherOutputLoader
from dataset.teacher_cache.opening import open_cache
from dataset.unlabelled import open_unlabelled
from distiller_zoo import distiller_dict, get_method
from helper.compile import compile_forward
from helper.errors import UserError
from helper.loops import train_epoch
from models import model_dict
from options import student_options
from scripts import fill_teacher_cache, make_shards


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """A folder of 10 images without classes, in two folders of different depth, and a text file."""
    root = tmp_path_factory.mktemp('unlabelled')
    write_images(root / 'some', 3, classes=('a', 'b'))
    write_images(root, 4, classes=('c',))
    (root / 'notes.txt').write_text('')
    return root


def load(tree, images, **changes):
    """The Data of the tree with 6 unlabelled images beside batches of 16; 48 images have labels."""
    opt = data_options(**{'data_dir': str(tree), 'num_workers': 0, 'unlabelled': str(images), 'unlabelled_batch': 6,
                          'seed': 3, **changes})
    views = get_method(getattr(opt, 'distill', 'kd')).spec.views
    return opt, get_dataloaders(opt, CPU, views=views)


def distil(method, data, **changes):
    """The distiller of a resnet8 and a resnet14 of random weights, and its options."""
    torch.manual_seed(0)
    opt = options(method, batch=data.train_loader.batch_size, **changes)
    nets = (model_dict[name](num_classes=data.num_classes) for name in ('resnet8', 'resnet14'))
    return get_method(method)(*nets, opt, data), opt


def indices(loader, epoch=1):
    """The numbers of the unlabelled images in an epoch, in their order."""
    loader.order.epoch = epoch
    return torch.cat([index[len(target):] for _, target, index in loader]).tolist()


def test_images_that_are_tested_too(tree, images, capsys):
    """Also those that --split holds out. None with other images."""
    load(tree, images)
    assert 'of the test images' not in capsys.readouterr().out
    load(tree, tree.parent / tree.name)
    assert f'--unlabelled {tree}: holds 24 of the test images: the student also trains on' in capsys.readouterr().out
    load(tree / 'train', tree, split=[0.5, 0.25, 0.25])
    out = capsys.readouterr().out
    assert 'holds 12 of the validation images' in out and 'holds 12 of the test images' in out


def test_the_spelling_of_the_folder(images):
    """It changes neither the names of the images nor the checksum."""
    first, *others = (open_unlabelled(SimpleNamespace(unlabelled=text)) for text in (
        str(images), f'{images}/', f'{images.parent}/./{images.name}', f'{images.parent}//{images.name}'))
    for other in others:
        assert other.names == first.names and other.checksum() == first.checksum()


# Batches

def test_a_batch(tree, images, capsys):
    _, data = load(tree, images)
    assert data.sizes == '48 training images, 10 unlabelled images, 24 test images in test'
    assert f'--unlabelled {images}: 1 file left out: 1 .txt' in capsys.readouterr().out
    assert len(data.train_loader) == 3 and data.train_loader.n_samples == 48 + 3 * 6
    for batch, target, index in data.train_loader:
        assert batch.shape == (22, 3, 16, 16) and target.shape == (16,) and index.shape == (22,)
        assert torch.equal(target, data.labels[index[:16]]) and index[16:].min() >= 48 and index.max() < 58


@pytest.mark.parametrize('changes', [{}, {'images_in': 'disk'}, {'dataset': 'digits'},
                                     {'crop': 'resized', 'images_in': 'memory'}])
def test_the_passes_continue_across_epochs(tree, images, changes):
    """Each pass has every image once, in another order. The seed and the number of the step decide all."""
    _, data = load(tree, images, **changes)
    first = 48 if 'dataset' not in changes else data.n_train
    epochs = [indices(data.train_loader, epoch) for epoch in (1, 2, 3)]
    passes = np.reshape(sum(epochs, [])[:50], (5, 10))
    assert all(sorted(row) == list(range(first, first + 10)) for row in passes.tolist())
    assert len({*map(tuple, passes.tolist())}) == 5
    again = load(tree, images, **changes)[1].train_loader
    other = load(tree, images, **changes, seed=4)[1].train_loader
    assert indices(again, 2) == epochs[1] != indices(other, 2)


def test_tar_shards(tree, call, tmp_path):
    """All images of all splits; beside them the labelled ones come from files."""
    call(make_shards.main, '--data_dir', tree, '--out', tmp_path)
    _, data = load(tree, f'wds:{tmp_path}', images_in='disk')
    assert data.n_unlabelled == 72 and {*indices(data.train_loader)} <= {*range(48, 120)}


def test_two_processes_divide_a_batch(tree, images, monkeypatch):
    whole = [batch[2].tolist() for batch in load(tree, images, images_in='memory')[1].train_loader]
    monkeypatch.setattr('helper.distributed.world_size', lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr('helper.distributed.rank', lambda rank=rank: rank)
        loader = load(tree, images, images_in='memory', batch_size=8, unlabelled_batch=3)[1].train_loader
        parts.append([batch[2].tolist() for batch in loader])
    assert [a[:8] + b[:8] + a[8:] + b[8:] for a, b in zip(*parts, strict=True)] == whole


def test_an_interrupted_epoch(tree, images):
    """Also with augmentation, read from disk."""
    _, data = load(tree, images, images_in='disk')
    loader = data.train_loader
    loader.order.epoch, state = 2, loader.order.generator.get_state()
    whole = list(loader)
    loader = load(tree, images, images_in='disk', seed=9)[1].train_loader
    loader.order.epoch, loader.order.first_batch = 2, 1
    loader.order.generator.set_state(state)
    for a, b in zip(whole[1:], loader, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Losses

def test_the_losses_by_hand(tree, images):
    """The cross-entropy is of the labelled images alone, the soft labels and the method's loss of all."""
    _, data = load(tree, images)
    distiller, opt = distil('hint', data, alpha=0.5)
    batch, target, index = next(iter(data.train_loader))
    distiller.eval()
    losses, logits = distiller(batch, target, index)
    out_s, out_t = distiller.student.outputs(batch), distiller.teacher.outputs(batch)
    s, t = F.log_softmax(out_s.logits / 4, 1), F.softmax(out_t.logits / 4, 1)
    wanted = {'ce': F.cross_entropy(out_s.logits[:16], target), 'kl': 16 * F.kl_div(s, t, reduction='batchmean'),
              'method': distiller.method_loss(out_s, out_t, target, index)}
    for name, value in wanted.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5)
    assert losses['loss'].item() == pytest.approx(
        (opt.gamma * wanted['ce'] + 0.5 * wanted['kl'] + 100 * wanted['method']).item(), rel=1e-5)
    assert torch.equal(logits, out_s.logits[:16])


@pytest.mark.parametrize('method', distiller_dict)
def test_every_method(method):
    """It is refused, or its losses but the cross-entropy do not depend on the labels."""
    try:
        student_options(['--path-t', 'x', '--distill', method, '--unlabelled', 'y'])
    except UserError as error:
        assert 'class' in str(error)
        return
    distiller, loader, _ = build(method)
    if distiller.in_first_stage:
        distiller.end_first_stage()
    images, target, index = next(iter(loader))
    results = []
    for labels in (target[:5], (target[:5] + 1) % 10, target[:0]):
        torch.manual_seed(1)
        losses, logits = distiller.eval()(images, labels, index)
        assert len(logits) == len(labels)
        results.append({name: loss.item() for name, loss in losses.items() if name not in ('loss', 'ce')})
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize('method', ['kd', 'mlld', 'rkd+kd', 'fsp'])
def test_an_epoch(tree, images, method):
    """The averages weight cross-entropy and accuracy by the labelled images; the last batch has few of them."""
    opt, data = load(tree, images, batch_size=20, distill=method)
    distiller, opt = distil(method, data)
    sizes, results, forward = [], [], distiller.forward

    def record(*batch):
        sizes.append((len(batch[1]), batch[0].shape[-4]))
        results.append(forward(*batch))
        return results[-1]
    distiller.forward = record
    if distiller.in_first_stage:
        assert train_epoch(1, data.train_loader, distiller, torch.optim.SGD(distiller.parameters(), 1e-5), opt).keys() \
            == {'loss', 'images_per_second'}
        distiller.end_first_stage()
        sizes.clear(), results.clear()
    averages = train_epoch(1, data.train_loader, distiller, torch.optim.SGD(distiller.parameters(), 1e-5), opt)
    assert sizes == [(20, 26), (20, 26), (8, 14)]
    for name, weights in (('ce', (20, 20, 8)), ('loss', (26, 26, 14))):
        values = [losses[name].item() for losses, _ in results]
        assert averages[name] == pytest.approx(np.average(values, weights=weights), rel=1e-5)
    assert 48 * averages['top1'] / 100 == pytest.approx(round(48 * averages['top1'] / 100))


def test_compiled(tree, images):
    """The full batch has the unlabelled images too."""
    curves = []
    for compiled in (False, True):
        _, data = load(tree, images)
        distiller, _ = distil('kd', data)
        if compiled:
            compile_forward(distiller, data.train_loader.batch_size, CPU)
        curves.append(losses_of_epoch(distiller, data.train_loader, torch.optim.SGD(distiller.parameters(), 0.01)))
    assert curves[1] == pytest.approx(curves[0], rel=1e-4) and curves[1] != curves[0]


@pytest.mark.parametrize('changes', [
    {}, {'cache_epochs': 2, 'images_in': 'disk'}, {'cache_epochs': 2, 'distill': 'mlld'}])
def test_teacher_cache(tree, images, tmp_path, changes):
    """The stored outputs of labelled and unlabelled images are those that the teacher computes."""
    changes = {'cache_epochs': None, 'cache_seed': 0, 'distill': 'kd', **changes}
    curves, files = [], []
    for folder in (None, tmp_path, tmp_path):
        _, data = load(tree, images, **changes)
        distiller, opt = distil(changes['distill'], data, teacher_cache=folder and str(folder), epochs=4, **changes)
        loader = data.train_loader
        if folder:
            cache = open_cache(opt, (), distiller.teacher, data, CPU)
            loader = TeacherOutputLoader(loader, cache, distiller.teacher_outputs)
            files.append(cache.layout.slots)
        optimizer, losses = torch.optim.SGD(distiller.parameters(), 0.01), []
        for loader.order.epoch in (1, 2):
            losses += losses_of_epoch(distiller, loader, optimizer)
        curves.append(losses)
    assert curves[1] == curves[2] == pytest.approx(curves[0], rel=1e-4)
    assert files == 2 * [58 * (1 if changes['distill'] == 'kd' else 2) if changes['cache_epochs'] else 58 * 162]


# Runs

def test_resume_within_an_epoch(call, small, teacher, images, tmp_path, interrupt, capfd):
    """The seed is drawn; the parts of the run take it from the state."""
    arguments = ['--path_t', teacher, *small, '--epochs', 2, '--unlabelled', images, '--unlabelled_batch', 6]
    seed = arguments.index('--seed')
    del arguments[seed:seed + 2]
    interrupt(5)
    with pytest.raises(SystemExit):
        call(train_student.main, *arguments, '--save_dir', tmp_path / 'parts')
    interrupt(10**9)
    call(train_student.main, *arguments, '--save_dir', tmp_path / 'parts', '--resume')
    output = capfd.readouterr().out
    assert '48 training images, 10 unlabelled images, 24 test images' in output and 'after step 2 of epoch 2' in output
    written = json.loads(next(tmp_path.glob('*/*/*/parameters.json')).read_text())
    assert written['unlabelled'] == str(images) and written['unlabelled images'] == 10
    call(train_student.main, *arguments, '--save_dir', tmp_path / 'whole', '--seed', written['seed'])
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))

    moved = tmp_path / 'images'
    shutil.copytree(images, moved)
    call(train_student.main, *arguments, '--save_dir', tmp_path / 'parts', '--resume', '--unlabelled', moved)
    assert 'after epoch 2' in capfd.readouterr().out
    (moved / 'c' / '0.png').unlink()
    with pytest.raises(SystemExit):
        call(train_student.main, *arguments, '--save_dir', tmp_path / 'parts', '--resume', '--unlabelled', moved)
    assert 'unlabelled images 10, now 9; unlabelled images (checksum)' in capfd.readouterr().err


@pytest.fixture(scope='module')
def tests_alone(tree, tmp_path_factory):
    """A data folder with the test images of the tree alone."""
    root = tmp_path_factory.mktemp('alone')
    shutil.copytree(tree / 'test', root / 'test')
    return root


def test_without_any_label(call, small, teacher, images, tests_alone, tmp_path, capfd):
    """The student learns from the teacher alone; the test images have labels."""
    arguments = ['--path_t', teacher, *small, '--data_dir', tests_alone, '--unlabelled', images, '-r', 0]
    call(train_student.main, *arguments, '--unlabelled_batch', 5, '--save_dir', tmp_path)
    call(train_student.main, *arguments, '--unlabelled_batch', 5, '--estimate')
    output = capfd.readouterr().out
    assert '16 pixels, 10 unlabelled images, 24 test images in test' in output and 'epoch 1: train loss' in output
    assert 'so its accuracy is optimistic; give a validation set to choose it on that' in output
    history, = json.loads(next(tmp_path.glob('*/*/history.json')).read_text())
    assert 'train_acc' not in history and history['train'].keys() == {'loss', 'kl', 'images_per_second'}
    refused = [(['-r', 1], '-r 1: needs training images with labels, and --data_dir'),
               (['--val_fraction', 0.5], '--val_fraction 0.5: needs training images with labels'),
               (['-b', 'auto', '--distill', 'hint'], '-b auto: needs training images with labels'),
               (['--patience', 2], '--patience 2: needs a validation set, and folder has none; add images as '),
               (['--teacher_head', 'linear'], '--teacher_head linear: needs training images with labels'),
               (['-a', 0, '--distill', 'hint', '--unlabelled_batch', 5], '-a 0: --distill hint compares features'),
               (['-b', '1,0', '--distill', 'rkd+kd', '--unlabelled_batch', 5], '-b 1.0,0.0: --distill rkd+kd compares')]
    for more, words in refused:
        with pytest.raises(SystemExit) as caught:
            call(train_student.main, *arguments, *more, '--save_dir', tmp_path / 'no')
        assert caught.value.code == 2 and words in capfd.readouterr().err
    assert not (tmp_path / 'no').exists()


def test_refused(call, small, teacher, images, tmp_path, capfd):
    (tmp_path / 'empty').mkdir()
    given = ['--unlabelled', images, '--unlabelled_batch', 4]
    for more, words in (
            (['--unlabelled', tmp_path / 'none'], 'none: no such folder; give one with images in it'),
            (['--unlabelled', tmp_path / 'empty'], 'empty: holds no image; images are .jpg'),
            (['--unlabelled_batch', 4], '--unlabelled_batch 4: has no effect without --unlabelled'),
            ([*given, '--distill', 'dkd'], ': --distill dkd needs the class of each image; it goes with kd, hint'),
            ([*given, '--distill', 'hint+crd'], ': --distill hint+crd needs the class of each image'),
            ([*given, '--distill', 'abkd', '--abkd_base', 'dkd'], ': --abkd_base dkd needs one class'),
            ([*given, '--mixup', 0.2], '--mixup 0.2: mixes labels'),
            ([*given, '--reprob', 0.2, '--cache_epochs', 1], '--reprob 0.2: --cache_epochs 1 cannot repeat'),
            ([*given, '--path_t', teacher, teacher, '--teacher_weights', 'agree'], 'needs the class of each image'),
            ([*given, '--unlabelled_batch', 11], f'--unlabelled_batch 11: --unlabelled {images} has 10 images'),
            ([*given, '--dataset', 'imagenet', '--dali', 'cpu'], 'DALI reads the images of one folder'),
            ([*given, '--evaluate'], '--unlabelled: has no effect with --evaluate')):
        with pytest.raises(SystemExit) as caught:
            call(train_student.main, '--path_t', teacher, *small, *more, '--save_dir', tmp_path / 'no')
        error = capfd.readouterr().err
        assert caught.value.code == 2 and words in error and error.count('\n') == 1
    assert not (tmp_path / 'no').exists()
    with pytest.raises(SystemExit):
        call(fill_teacher_cache.main, '--path_t', teacher, *small, *given)
    assert 'stores the outputs for these images itself' in capfd.readouterr().err


def test_an_unreadable_image(tree, images, tmp_path):
    shutil.copytree(images, tmp_path / 'images')
    (tmp_path / 'images' / 'bad.png').write_bytes(b'no image')
    with pytest.raises(UserError, match=r'bad.png: .*; --skip_bad_images leaves it out$'):
        load(tree, tmp_path / 'images', dataset='digits')
    _, data = load(tree, tmp_path / 'images', dataset='digits', skip_bad_images=True)
    assert {*indices(data.train_loader)} <= {*range(data.n_train, data.n_train + 10)}
