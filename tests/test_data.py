"""The in-memory loader against torchvision's per-image pipeline, and the sources of images."""
import argparse
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CLASSES, CPU, Hostile, data_options, write_images
from PIL import Image
from torchvision import datasets, transforms

import dataset
from analysis import run_checkpoint
from dataset import cifar, digits, source
from dataset.augment import GREY, Strong, cutout
from dataset.folder import Split, scan
from dataset.image import read_rgb
from dataset.memory import MemoryLoader
from dataset.normalise import CIFAR_MEAN as MEAN
from dataset.normalise import CIFAR_STD as STD
from dataset.split import divide, parse_shares, stratified_indices
from helper.checkpoint import load_checkpoint
from helper.errors import UserError
from helper.resume import IMAGES, fingerprint
from scripts import cifar10_folder


def test_augmentation_is_torchvisions():
    """The loader yields every crop offset and flip, and no other image, with torchvision's frequencies."""
    torch.manual_seed(0)
    image = torch.randint(1, 256, (1, 3, 32, 32), dtype=torch.uint8)        # no black pixel: padding shows
    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    padded = transforms.Pad(4)(transforms.ToPILImage()(image[0]))           # black before normalising
    expected = {}
    for y in range(9):
        for x in range(9):
            for flip in (False, True):
                crop = transforms.functional.crop(padded, y, x, 32, 32)
                crop = transforms.functional.hflip(crop) if flip else crop
                expected[y, x, flip] = finish(crop)
    n = 16200
    loader = MemoryLoader(image.expand(n, -1, -1, -1), torch.zeros(n, dtype=torch.int64), 900, CPU, train=True, seed=1)
    keys, references = list(expected), torch.stack(list(expected.values())).flatten(1)
    counts = torch.zeros(len(keys))
    for images, _, _ in loader:
        distance = torch.cdist(images.flatten(1), references)
        nearest = distance.argmin(1)
        assert torch.equal(images.flatten(1), references[nearest])          # to the bit, padding included
        counts += torch.bincount(nearest, minlength=len(keys))
    assert counts.min() > 0                                                 # each of the 162 outcomes is seen
    chi_square = ((counts - n / 162) ** 2 / (n / 162)).sum().item()
    assert chi_square < 230                                                 # 161 degrees of freedom: p > 0.0003
    flips = counts.view(81, 2).sum(0)
    assert abs(flips[0] - flips[1]).item() < 4 * n ** 0.5

    # torchvision's own random pipeline stays within the same 162 images.
    pipeline = transforms.Compose([transforms.ToPILImage(), transforms.RandomCrop(32, padding=4),
                                   transforms.RandomHorizontalFlip(), finish])
    drawn = torch.stack([pipeline(image[0]) for _ in range(200)]).flatten(1)
    assert torch.equal(drawn, references[torch.cdist(drawn, references).argmin(1)])


def test_test_images_are_normalised_alone():
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    loader = MemoryLoader(images, torch.arange(5), 2, CPU)
    batches = list(loader)
    assert len(loader) == len(batches) == 3 and [len(b[1]) for b in batches] == [2, 2, 1]
    want = (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(torch.cat([b[0] for b in batches]), want)
    assert torch.cat([b[2] for b in batches]).tolist() == [0, 1, 2, 3, 4]
    back = loader.normalise.to_pixels(torch.cat([b[0] for b in batches]))
    assert back.dtype == torch.uint8 and torch.equal(back, images.permute(0, 2, 3, 1))


def test_epochs_are_shuffled_and_seeded():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    target = torch.arange(50) % 7

    def epochs(seed):
        loader = MemoryLoader(images, target, 16, CPU, train=True, seed=seed)
        return [[torch.cat(parts) for parts in zip(*loader, strict=True)] for _ in range(2)]
    first, second = epochs(3)
    again = epochs(3)[0]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[2].tolist() != second[2].tolist() and epochs(4)[0][2].tolist() != first[2].tolist()
    for _, labels, index in (first, second):
        assert sorted(index.tolist()) == list(range(50))                    # every image once
        assert torch.equal(labels, target[index])


def test_two_views(tree, tmp_path):
    """The first view equals that of a loader with one view; the second has its own crop, and is stronger if asked."""
    images = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8)
    target = torch.arange(24)

    def batches(views, **more):
        return list(MemoryLoader(images, target, 8, CPU, train=True, seed=3, views=views, **more))
    one, weak, strong = (batches(views) for views in (('weak',), ('weak', 'weak'), ('weak', 'strong')))
    for a, b, c in zip(one, weak, strong, strict=True):
        assert b[0].shape == c[0].shape == (2, 8, 3, 16, 16) and torch.equal(a[2], b[2]) and torch.equal(a[2], c[2])
        assert torch.equal(a[0], b[0][0]) and torch.equal(a[0], c[0][0])
        assert not torch.equal(b[0][0], b[0][1]) and not torch.equal(b[0][1], c[0][1])
        assert b[0][1].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(strong, batches(('weak', 'strong')), strict=True))
    parts = [list(MemoryLoader(images, target, 4, CPU, train=True, seed=3, views=('weak', 'strong'), rank=rank,
                               world_size=2)) for rank in (0, 1)]
    for whole, a, b in zip(strong, *parts, strict=True):
        assert torch.equal(whole[0], torch.cat([a[0], b[0]], 1))
    contiguous = batches(('weak', 'strong'), channels_last=False)
    assert torch.equal(contiguous[0][0], strong[0][0]) and contiguous[0][0][1].is_contiguous()
    data = dataset.get_dataloaders(data_options(data_dir=str(tree)), CPU, views=('weak', 'strong'))
    assert next(iter(data.train_loader))[0].shape == (2, 16, 3, 16, 16)
    assert next(iter(data.test_loader))[0].shape == (16, 3, 16, 16)
    with pytest.raises(ValueError, match='views .*weak, strong'):
        dataset.get_dataloaders(data_options(data_dir=str(tree)), CPU, views=('weak', 'hard'))


def test_strong_view():
    """Random operations, some without effect, then a grey square of at most half the side."""
    torch.manual_seed(0)
    image = torch.randint(0, 100, (3, 32, 32), dtype=torch.uint8)
    results = [Strong()(image) for _ in range(40)]
    assert len({result.numpy().tobytes() for result in results}) == 40
    assert all(result.shape == image.shape and result.dtype == torch.uint8 for result in results)
    assert torch.equal(image, image.clone()) and image.max() < 100      # the image itself is not changed
    sizes = []
    for _ in range(300):
        found = (cutout(image) == GREY).all(0)
        rows, columns = found.any(1).sum().item(), found.any(0).sum().item()
        assert found.sum() == rows * columns and max(rows, columns) <= 17
        sizes.append(rows * columns)
    assert max(sizes) > 200 and min(sizes) < 20


def test_drop_last_and_memory_format():
    images, target = torch.zeros(50, 3, 8, 8, dtype=torch.uint8), torch.zeros(50, dtype=torch.int64)
    loader = MemoryLoader(images, target, 16, CPU, train=True, drop_last=True)
    assert len(loader) == 3 and [len(b[1]) for b in loader] == [16, 16, 16]
    assert next(iter(loader))[0].is_contiguous(memory_format=torch.channels_last)
    plain = MemoryLoader(images, target, 16, CPU, train=True, channels_last=False)
    assert next(iter(plain))[0].is_contiguous()


def test_digits():
    data = dataset.get_dataloaders(data_options(dataset='digits', batch_size=64), CPU)
    assert (data.n_train, data.test_loader.n_samples, data.num_classes, data.image_size) == (1437, 360, 10, 32)
    images, target, _ = next(iter(data.test_loader))
    assert images.shape == (64, 3, 32, 32) and torch.bincount(data.train_loader.target).min() > 100
    assert images.std() > 0.5 and len(target.unique()) == 10
    assert torch.equal(data.test_labels, data.test_loader.target) and data.classes == tuple('0123456789')


def test_the_digits_are_scikit_learns():
    """The images and their split and order equal scikit-learn's."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    scans, labels = load_digits(return_X_y=True)
    want = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    assert [part.tolist() for part in digits.split(labels)] == [part.tolist() for part in want]
    for (images, target), part in zip(digits.load(None)[:2], want, strict=True):
        assert target.tolist() == labels[part].tolist()
        corner = torch.tensor(scans[part, 0] * (255 / 16)).round().to(torch.uint8)
        assert torch.equal(images[:, 0, 0, 0], corner) and torch.equal(images[:, 0], images[:, 2])


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setattr(digits, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='--dataset digits: .* pip install scikit-learn'):
        dataset.get_dataloaders(data_options(dataset='digits'), CPU)


@pytest.mark.parametrize('name', ['CIFAR10', 'CIFAR100'])
def test_cifar(name, monkeypatch, tmp_path):
    """The files and their content equal torchvision's."""
    theirs, (folder, train, test, meta, labels, names) = getattr(datasets, name), cifar.FILES[name.lower()]
    sums = dict([*theirs.train_list, *theirs.test_list, (theirs.meta['filename'], theirs.meta['md5'])])
    assert {file: cifar.MD5[file] for file in (*train, test, meta)} == sums and theirs.base_folder == folder

    rng, classes = np.random.default_rng(0), [f'class {c}' for c in range(10)]
    contents = {file: {'data': rng.integers(0, 256, (20, 3072), dtype=np.uint8),
                       labels: rng.integers(0, 10, 20).tolist()} for file in (*train, test)}
    (tmp_path / folder).mkdir()
    for file, content in {**contents, meta: {names: classes}}.items():
        (tmp_path / folder / file).write_bytes(pickle.dumps(content))
        monkeypatch.setitem(cifar.MD5, file, hashlib.md5((tmp_path / folder / file).read_bytes()).hexdigest())
    opt = data_options(dataset=name.lower(), data_dir=str(tmp_path))
    *found, found_classes = cifar.load(opt)
    monkeypatch.setattr(theirs, '_check_integrity', lambda self: True)
    monkeypatch.setitem(theirs.meta, 'md5', None)
    for (images, target), is_train in zip(found, (True, False), strict=True):
        whole = theirs(tmp_path, train=is_train)
        assert images.dtype == torch.uint8 and images.is_contiguous() and target.tolist() == whole.targets
        assert np.array_equal(images.permute(0, 2, 3, 1), whole.data) and found_classes == whole.classes == classes
    data = dataset.get_dataloaders(opt, CPU)
    assert (data.n_train, data.num_classes, data.image_size) == (20 * len(train), 10, 32)

    # A file that is not the right one is not unpickled: torchvision is asked for it.
    (tmp_path / folder / test).write_bytes(pickle.dumps(Hostile(tmp_path / 'mark')))

    def offline(root, download):
        raise OSError('no network')
    monkeypatch.setattr(datasets, name, offline)
    with pytest.raises(UserError, match=f'--dataset {name.lower()}: not whole under --data_dir .*no network'):
        dataset.get_dataloaders(opt, CPU)
    assert not (tmp_path / 'mark').exists()


def test_cifar10_folder(call, monkeypatch, tmp_path, capsys):
    """The folder holds the same images and labels; an existing one is not touched."""
    splits = [(torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8), torch.randint(3, (n, ))) for n in (9, 5)]
    monkeypatch.setattr(cifar10_folder, 'load', lambda opt: (*splits, ['cat', 'dog', 'frog']))
    out = tmp_path / 'data' / 'cifar10'
    call(cifar10_folder.main, '--out', out)
    assert [path.name for path in out.parent.iterdir()] == ['cifar10']
    folders, classes = scan(out)
    assert classes == ['cat', 'dog', 'frog']
    for name, (images, labels) in zip(('train', 'test'), splits, strict=True):
        order = labels.argsort(stable=True)
        written = np.stack([np.asarray(Image.open(file)) for file in folders[name].files])
        assert folders[name].labels.tolist() == labels[order].tolist()
        assert np.array_equal(written, images[order].permute(0, 2, 3, 1))
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call(cifar10_folder.main, '--out', out)
    assert caught.value.code == 2 and capsys.readouterr().err == f'error: --out {out}: exists already; give a folder ' \
        'that does not\n'


def test_folder(tree):
    data = dataset.get_dataloaders(data_options(data_dir=str(tree)), CPU)
    assert (data.n_train, data.test_loader.n_samples, data.num_classes, data.image_size) == (48, 24, 4, 16)
    larger = dataset.get_dataloaders(data_options(data_dir=str(tree), image_size=32), CPU)
    assert next(iter(larger.train_loader))[0].shape == (16, 3, 32, 32)
    first = np.asarray(Image.open(tree / 'test' / 'ant' / '0.png'))
    want = transforms.functional.normalize(transforms.functional.to_tensor(first), MEAN, STD)
    assert torch.equal(next(iter(data.test_loader))[0][0], want)


def test_images_of_every_mode(tmp_path):
    grey = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / 'grey.png')
    Image.fromarray(grey.astype(np.uint16) << 8).save(tmp_path / 'deep.png')
    Image.fromarray(grey).convert('P').save(tmp_path / 'palette.png')
    Image.fromarray(grey).convert('CMYK').save(tmp_path / 'cmyk.jpg', quality=100)
    for name in ('grey.png', 'deep.png', 'palette.png', 'cmyk.jpg'):
        image = read_rgb(tmp_path / name)
        assert image.mode == 'RGB' and np.abs(np.asarray(image)[..., 1].astype(int) - grey).max() <= 3, name


def bad_tree(tmp_path, kind):
    """A data folder with one fault, and words of the error."""
    if kind == 'missing':
        return tmp_path / 'nowhere', 'no such folder'
    if kind == 'empty':
        return tmp_path, 'train'
    write_images(tmp_path / 'train', 8)
    if kind == 'no test':
        return tmp_path, '/test/CLASS/*'
    write_images(tmp_path / 'val', 2, classes=CLASSES[:3] if kind == 'classes differ' else CLASSES)
    if kind == 'classes differ':
        return tmp_path, 'dog'
    if kind == 'empty class':
        for file in (tmp_path / 'train' / 'bee').iterdir():
            file.unlink()
        return tmp_path, 'bee'
    damaged = tmp_path / 'train' / 'cat' / '3.png'
    damaged.write_bytes(damaged.read_bytes()[:200])
    return tmp_path, str(damaged)


IMAGES_OF_TEN, LABELS_OF_TEN = torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.arange(10) % 2
PART = IMAGES_OF_TEN, LABELS_OF_TEN
NAMES = ['a', 'b']


@pytest.mark.parametrize('loaded, words', [
    ((PART, PART), 'a tuple of 2 (tuple) instead of three values'), (None, 'a NoneType instead of three values'),
    ((PART, PART, 2), 'the number 2 as classes'), ((PART, PART, []), 'a list of 0 (nothing) as classes'),
    ((PART, PART, [0, 1]), 'a list of 2 (int) as classes'), ((PART, PART, ['a', 'a']), 'a name of a class twice'),
    ((PART, IMAGES_OF_TEN, NAMES), 'a tensor of uint8 on cpu instead of (test images, labels)'),
    (((IMAGES_OF_TEN.numpy(), LABELS_OF_TEN), PART, NAMES), 'train images that are a numpy.ndarray; wanted are '),
    (((IMAGES_OF_TEN / 255, LABELS_OF_TEN), PART, NAMES), 'train images that are a tensor of float32 on cpu'),
    ((PART, (IMAGES_OF_TEN, LABELS_OF_TEN.int()), NAMES), 'test labels that are a tensor of int32 on cpu'),
    ((PART, (IMAGES_OF_TEN.movedim(1, 3), LABELS_OF_TEN), NAMES), 'test images of shape (10, 8, 8, 3)'),
    ((PART, (IMAGES_OF_TEN[:, :, 1:], LABELS_OF_TEN), NAMES), 'test images of shape (10, 3, 7, 8)'),
    ((PART, (IMAGES_OF_TEN[:0], LABELS_OF_TEN[:0]), NAMES), 'test images of shape (0, 3, 8, 8)'),
    ((PART, (IMAGES_OF_TEN, LABELS_OF_TEN[1:]), NAMES), 'test labels of shape (9,) for 10 images'),
    ((PART, (IMAGES_OF_TEN, LABELS_OF_TEN + 1), NAMES), 'test labels from 1 to 2 for 2 classes, which count from 0'),
    ((PART, (IMAGES_OF_TEN[:, :, :4, :4], LABELS_OF_TEN), NAMES), 'train images of 8 and test images of 4 pixels')])
def test_a_data_set_of_ones_own(monkeypatch, loaded, words):
    """A fault in the function's value is an error that names the data set."""
    monkeypatch.setitem(dataset.memory_dict, 'mine', lambda opt: loaded)
    opt = data_options(dataset='mine', batch_size=4)
    with pytest.raises(UserError) as caught:
        dataset.get_dataloaders(opt, CPU)
    assert f'--dataset mine: its function in memory_dict returns {words}' in str(caught.value)
    monkeypatch.setitem(dataset.memory_dict, 'mine', lambda opt: 1 / 0)
    with pytest.raises(UserError, match='--dataset mine: its function in memory_dict fails with ZeroDivisionError'):
        dataset.get_dataloaders(opt, CPU)
    monkeypatch.setitem(dataset.memory_dict, 'mine', lambda opt: (PART, list(PART), tuple(NAMES)))
    assert dataset.get_dataloaders(opt, CPU).classes == ('a', 'b')


def test_links(tmp_path):
    """A class folder or an image may be a link; a link to a parent folder is not followed twice."""
    write_images(tmp_path / 'elsewhere', 3)
    write_images(tmp_path / 'train', 4)
    write_images(tmp_path / 'val', 2, classes=[*CLASSES, 'eel'])
    (tmp_path / 'train' / 'eel').symlink_to(tmp_path / 'elsewhere' / 'ant')
    (tmp_path / 'train' / 'cat' / 'more').symlink_to(tmp_path / 'elsewhere' / 'bee')
    (tmp_path / 'train' / 'cat' / 'again').symlink_to('.')
    (tmp_path / 'train' / 'bee' / 'back').symlink_to('..' / Path('bee'))
    (tmp_path / 'train' / 'dog' / '9.png').symlink_to(tmp_path / 'elsewhere' / 'dog' / '0.png')
    splits, classes = scan(tmp_path)
    train = splits['train']
    assert classes == [*CLASSES, 'eel'] and torch.bincount(train.labels).tolist() == [4, 4, 7, 5, 3]
    assert [Path(file).name for file in train.files[8:15]] == ['0.png', '1.png', '2.png', '3.png'] + [
        '0.png', '1.png', '2.png']


EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n'
NO_IMAGES = {'empty': b'', 'text': b'text', 'eps': EPS, 'cut tiff': b'II*\0\x08\0\0\0\xff\xff' + bytes(30),
             'avif': b'\0\0\0\x20ftypavif' + bytes(40), 'dds': b'DDS ' + bytes(124),
             'png': b'\x89PNG\r\n\x1a\n' + bytes(30), 'gif': b'GIF89a' + bytes(7)}


@pytest.mark.parametrize('kind', NO_IMAGES)
def test_no_image(tmp_path, monkeypatch, kind):
    """The error names the file, and no external program is started to read it."""
    (tmp_path / 'gs').write_text(f'#!/bin/sh\n: > {tmp_path}/started\n')
    (tmp_path / 'gs').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    file = tmp_path / 'x.jpg'
    file.write_bytes(NO_IMAGES[kind])
    with pytest.raises(UserError, match='x.jpg: not a readable image') as caught:
        read_rgb(file)
    assert '\n' not in str(caught.value) and not (tmp_path / 'started').exists()


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / 'x.jpg')
    with pytest.raises(UserError, match='x.jpg: is no file'):
        read_rgb(tmp_path / 'x.jpg')


@pytest.mark.parametrize('small', [0, 64], ids=['several_threads', 'one_thread'])
def test_bad_images_can_be_left_out(tmp_path, capsys, monkeypatch, small):
    monkeypatch.setattr('dataset.decode.SMALL', small)
    write_images(tmp_path / 'train', 8)
    write_images(tmp_path / 'val', 4)
    for file in ('train/bee/0.png', 'train/bee/5.png', 'val/dog/1.png'):
        (tmp_path / file).write_bytes(b'no image')
    data = dataset.get_dataloaders(data_options(data_dir=str(tmp_path), skip_bad_images=True), CPU)
    assert torch.bincount(data.labels).tolist() == [8, 6, 8, 8] and data.test_loader.n_samples == 15
    unread = [f'{tmp_path / file}: not a readable image (not JPEG, PNG or another format that is read)'
              for file in ('train/bee/0.png', 'train/bee/5.png', 'val/dog/1.png')]
    assert capsys.readouterr().out == (f'2 unreadable images left out: {unread[0]}; {unread[1]}\n'
                                       f'1 unreadable image left out: {unread[2]}\n')
    images, target, index = next(iter(data.train_loader))
    assert torch.equal(target, data.labels[index])
    for file in (tmp_path / 'val').glob('*/*'):
        file.write_bytes(b'')
    with pytest.raises(UserError, match='--skip_bad_images: none of the 16 images can be read'):
        dataset.get_dataloaders(data_options(data_dir=str(tmp_path), skip_bad_images=True), CPU)


def test_a_part_of_the_training_images():
    """--train_fraction takes the same part of each class for every seed, and a subset of every larger part."""
    whole, half, tenth = (dataset.get_dataloaders(data_options(dataset='digits', train_fraction=part, seed=seed), CPU)
                          for seed, part in enumerate((1.0, 0.5, 0.1)))
    counts = torch.bincount(whole.labels)
    assert torch.bincount(tenth.labels).tolist() == [round(n * 0.1) for n in counts.tolist()]
    assert tenth.test_loader.n_samples == whole.test_loader.n_samples == 360
    kept = [stratified_indices(whole.labels, part) for part in (0.5, 0.1)]
    assert set(kept[1].tolist()) < set(kept[0].tolist())
    for data, rows in zip((half, tenth), kept, strict=True):
        assert torch.equal(data.labels, whole.labels[rows]) and data.n_train == len(rows)
        assert torch.equal(data.train_loader.padded, whole.train_loader.padded[rows])
        assert torch.cat([index for _, _, index in data.train_loader]).max() < data.n_train
    # At least one of each class:
    assert stratified_indices(torch.tensor([0, 0, 1]), 0.01).tolist() in ([0, 2], [1, 2])
    with pytest.raises(UserError, match='--train_fraction 0.5: not for --dataset imagenet; it goes with .*digits'):
        dataset.check_dataset(data_options(dataset='imagenet', train_fraction=0.5))


def test_a_lone_last_image_is_served(tree):
    """A single last image joins the batch before, except with drop_last."""
    for drop_last, sizes in ((False, [48]), (True, [47])):
        data = dataset.get_dataloaders(data_options(data_dir=str(tree), batch_size=47), CPU, drop_last)
        batches = list(data.train_loader)
        assert [len(b[1]) for b in batches] == sizes and len(data.train_loader) == 1
        assert len({int(i) for b in batches for i in b[2]}) == sizes[0]


def test_semckd_alone_leaves_out_a_short_batch(call, small, teacher, tmp_path):
    """48 images in batches of 20 make two steps for semckd and three for other methods."""
    import train_student
    for method, steps in (('semckd', 2), ('kd', 3)):
        call(train_student.main, '--path-t', teacher, '--distill', method, *small, '--batch_size', 20, '--epochs', 1,
             '-b', int(method == 'semckd'), '--save_dir', tmp_path)
        last = load_checkpoint(str(next(tmp_path.glob(f'student_model/*_{method}_*/last.pth'))), '')
        assert last['module']['student.bn1.num_batches_tracked'] == steps


def test_the_digits_are_split_the_same_way_every_time():
    first, second = (dataset.get_dataloaders(data_options(dataset='digits'), CPU) for _ in range(2))
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.test_loader.images, second.test_loader.images)


@pytest.mark.parametrize('kind', ['missing', 'empty', 'no test', 'classes differ', 'empty class', 'unreadable'])
def test_bad_folder(tmp_path, kind):
    root, words = bad_tree(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        dataset.get_dataloaders(data_options(data_dir=str(root)), CPU)
    assert words in str(caught.value) and '\n' not in str(caught.value)


def test_which_split_is_measured(tmp_path, capsys):
    """The test set is the first of test, validation, valid and val that has class folders."""
    write_images(tmp_path / 'train', 2)
    for name, images in (('val', 1), ('valid', 2), ('validation', 3)):
        write_images(tmp_path / name, images)
        splits, _ = scan(tmp_path)
        assert [split.name for split in splits.values()] == ['train', name]
        assert len(splits['test'].files) == 4 * images
    (tmp_path / 'test' / 'images').mkdir(parents=True)      # as that of a competition
    assert scan(tmp_path)[0]['test'].name == 'validation'
    assert 'test: has no class folders, so the test images are taken from validation\n' in capsys.readouterr().out
    for name in CLASSES:
        (tmp_path / 'test' / name).mkdir()
    (tmp_path / 'test' / 'images').rmdir()
    with pytest.raises(UserError, match='no image in the class ant, bee, cat, dog'):
        scan(tmp_path)
    (tmp_path / 'train' / 'bee' / '0.png').rename(tmp_path / 'test' / 'bee' / '0.png')
    splits, _ = scan(tmp_path)
    assert splits['test'].labels.tolist() == [1]        # bee, as in train
    assert splits['val'].name == 'validation'           # beside a test set
    data = dataset.get_dataloaders(data_options(data_dir=str(tmp_path), batch_size=2), CPU)
    assert data.sizes == '7 training images, 12 validation images, 1 test image in test' and len(data.classes) == 4
    assert capsys.readouterr().out.endswith(
        '--dataset folder: no test image of the class ant, cat, dog: the accuracy does not cover it\n')


def test_shares():
    assert parse_shares('0.8,0.2') == [0.8, 0.2] and parse_shares('0.8,0.1,0.1') == [0.8, 0.1, 0.1]
    for text in ('0.8', '0.8,0.3', '1,0', '0.5,-0.5,1', 'a,b', '', '0.25,0.25,0.25,0.25'):
        with pytest.raises(argparse.ArgumentTypeError, match='give the shares of training and test images'):
            parse_shares(text)


def test_divide():
    """The split is stratified and depends on the names: a new image changes little, the order nothing."""
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 2 + [3])
    names = [f'{label}/{i}.png' for i, label in enumerate(labels.tolist())]
    found = divide(labels, names, [0.8, 0.1, 0.1])
    counts = {part: torch.bincount(labels[numbers], minlength=4).tolist() for part, numbers in found.items()}
    assert counts == {'train': [80, 8, 1, 1], 'val': [10, 1, 0, 0], 'test': [10, 1, 1, 0]}
    assert sorted(sum(found.values(), [])) == [*range(113)] and all(n == sorted(n) for n in found.values())
    assert [names[i] for i in found['test'][-2:]] == ['1/100.png', '2/111.png']        # the same in every version
    order = torch.randperm(113, generator=torch.Generator().manual_seed(0)).tolist()
    again = divide(labels[order], [names[i] for i in order], [0.8, 0.1, 0.1])
    assert {part: {order[i] for i in numbers} for part, numbers in again.items()} == \
        {part: {*numbers} for part, numbers in found.items()}
    two = divide(torch.cat([labels, labels[:1]]), [*names, '0/new.png'], [0.9, 0.1])
    assert {*two} == {'train', 'test'} and len({*two['test']} ^ {*found['test']}) <= 2


@pytest.mark.parametrize('images_in', ['memory', 'disk'])
def test_a_folder_without_splits(tmp_path, images_in, capsys):
    write_images(tmp_path / 'images', 10)
    opt = data_options(data_dir=str(tmp_path / 'images'), images_in=images_in, split=[0.6, 0.2, 0.2], num_workers=0)
    data = dataset.get_dataloaders(opt, CPU)
    assert data.sizes == '24 training images, 8 validation images, 8 test images in --split 0.6,0.2,0.2'
    assert torch.bincount(data.val_labels).tolist() == [2] * 4 and data.selection_split == 'val'
    assert {part: len(names) for part, names in data.split.items()} == {'train': 24, 'val': 8, 'test': 8}
    assert torch.bincount(data.labels).tolist() == [6] * 4 and torch.bincount(data.test_labels).tolist() == [2] * 4
    first = read_rgb(tmp_path / 'images' / data.split['test'][0])       # 'ant/3.png'
    wanted = transforms.functional.normalize(transforms.functional.to_tensor(first), MEAN, STD)
    assert torch.equal(next(iter(data.test_loader))[0][0], wanted)
    (tmp_path / 'images').rename(tmp_path / 'train')        # the training images of a data set without others
    opt.data_dir = str(tmp_path)
    assert dataset.get_dataloaders(opt, CPU).split == data.split
    with pytest.raises(UserError, match='needs .*/train/CLASS/. and .*/test/CLASS/.; --split 0.8,0.2 divides'):
        dataset.get_dataloaders(data_options(data_dir=str(tmp_path)), CPU)
    write_images(tmp_path / 'val', 1)
    with pytest.raises(UserError, match='--split 0.6,0.2,0.2: .* has the splits train and val already; leave it out'):
        dataset.get_dataloaders(opt, CPU)
    (tmp_path / 'val').rename(tmp_path / 'Test')        # else Test and train would be the classes
    with pytest.raises(UserError, match='has the splits Test and train already; .* must be train, test, val'):
        dataset.get_dataloaders(opt, CPU)
    with pytest.raises(UserError, match='--split 0.6,0.2,0.2: not for --dataset digits; it goes with folder, hf'):
        dataset.get_dataloaders(data_options(dataset='digits', split=[0.6, 0.2, 0.2]), CPU)


def test_a_run_keeps_its_split(call, tmp_path, capfd):
    """The run folder lists the images of each split, and a checkpoint is measured on its own test images."""
    import train_teacher
    write_images(tmp_path / 'images', 6)
    flags = ['--dataset', 'folder', '--data_dir', tmp_path / 'images', '--image_size', 16, '--split', '0.5,0.5',
             '--gpu_id', 'cpu', '--batch_size', 4]
    call(train_teacher.main, '--model', 'resnet8', *flags, '--epochs', 1, '--save_dir', tmp_path / 'save')
    assert '12 training images, 12 test images in --split 0.5,0.5, seed' in capfd.readouterr().out
    run = next((tmp_path / 'save' / 'models').iterdir())
    split = json.loads((run / 'split.json').read_text())
    assert sorted(split['train'] + split['test']) == sorted(f'{name}/{i}.png' for name in CLASSES for i in range(6))
    parameters = json.loads((run / 'parameters.json').read_text())
    found = run_checkpoint.RunCheckpoint.find(run, 'RUN')
    opt, inputs = run_checkpoint.data_options(found, SimpleNamespace(dataset=None, same_classes=False))
    again = dataset.get_dataloaders(opt, CPU, inputs=inputs)
    assert parameters['split'] == [0.5, 0.5] and again.split == split and opt.evaluate == str(found)
    for given_shares, file, said in (('0.5,0.5', 'resnet8_best.pth', False), ('0.6,0.4', 'resnet8_best.pth', True),
                                     ('0.6,0.4', 'last.pth', True)):
        call(train_teacher.main, *flags, '--split', given_shares, '--evaluate', run / file)
        assert ('its net was trained with --split 0.5,0.5, so the test images' in capfd.readouterr().out) == said
    with pytest.raises(SystemExit):
        call(train_teacher.main, '--model', 'resnet8', *flags, '--split', '0.6,0.4', '--epochs', 2, '--resume', run,
             '--save_dir', tmp_path / 'save')
    assert 'split [0.5, 0.5], now [0.6, 0.4]' in capfd.readouterr().err


def test_the_checksum_of_the_images(tree, tmp_path):
    """The checksum depends on the images and their names, not on the folder or how they are read."""
    copy = shutil.copytree(tree, tmp_path / 'copy')

    def checksum(**changes):
        return fingerprint(dataset.get_dataloaders(data_options(data_dir=str(copy), **changes), CPU))[IMAGES]
    first = checksum()
    for changes in ({'images_in': 'disk'}, {'train_fraction': 0.5}, {'image_size': 32}, {'num_workers': 0},
                    {'data_dir': str(tree)}):
        assert dataset.get_dataloaders(data_options(**{'data_dir': str(copy), **changes}), CPU).checksum == first
    file = copy / 'test' / 'ant' / '0.png'
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b'?')       # of the same size
    assert checksum() != first
    file.write_bytes(content)
    assert checksum() == first
    file.rename(file.with_name('00.png'))
    assert checksum() != first
    assert dataset.get_dataloaders(data_options(dataset='digits'), CPU).checksum is not None


def test_a_sample_of_many_files(monkeypatch, tree):
    """The checksum of a large split covers the content of some files, and the name and size of all."""
    monkeypatch.setattr(source, 'SAMPLE', 6)
    (train, again), read = (scan(tree)[0]['train'] for _ in range(2)), []
    entries = [f'{name} 1' for name in train.names]
    monkeypatch.setattr(Split, 'content', lambda self, i: ('', read.append(i) or b'x'))
    monkeypatch.setattr(Split, 'entries', lambda self: entries)
    first = train.checksum()
    assert read == [*range(0, 48, 8)] and train.names[13] == 'train/bee/1.png'
    entries[-1] = 'train/dog/9.png 2'
    assert train.checksum() == first != again.checksum()        # each source computes it once


def test_batch_larger_than_the_data(tree):
    with pytest.raises(UserError, match='--batch_size 49: folder has 48 training images'):
        dataset.get_dataloaders(data_options(data_dir=str(tree), batch_size=49), CPU)
    data = dataset.get_dataloaders(data_options(data_dir=str(tree), batch_size=49, evaluate='best.pth'), CPU)
    assert data.n_train == 48 and len(next(iter(data.test_loader))[0]) == 24        # nothing is trained


def test_measured_colours(tree):
    """--normalise measure: all training images together have mean 0 and deviation 1, also with --train_fraction."""
    opt = data_options(data_dir=str(tree), normalise='measure')
    data = dataset.get_dataloaders(opt, CPU)
    images = torch.cat([images for images, *_ in data.unaugmented_loader()])
    assert images.mean((0, 2, 3)).abs().max() < 1e-3 and (images.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert data.inputs['mean'] == [*data.mean] != [*MEAN]
    part = dataset.get_dataloaders(data_options(data_dir=str(tree), normalise='measure', train_fraction=0.5), CPU)
    assert (part.mean, part.std) == (data.mean, data.std) and part.n_train == 24
    usual = dataset.get_dataloaders(data_options(data_dir=str(tree)), CPU)
    assert usual.train_loader.checksum() != data.train_loader.checksum()


def test_a_folder_that_does_not_fit_in_memory(tree, monkeypatch, capsys):
    """It is read while training, with the same test images and classes, and a line says so."""
    opt = data_options(data_dir=str(tree), image_size=24, train_fraction=0.5, num_workers=0, normalise='measure')
    usual = dataset.get_dataloaders(opt, CPU)
    monkeypatch.setattr(dataset.parts, 'free_memory', lambda device: 10**5)
    lazy = dataset.get_dataloaders(opt, CPU)
    assert 'so they are read from disk while training' in capsys.readouterr().out
    assert (lazy.classes, lazy.image_size, lazy.inputs) == (usual.classes, usual.image_size, usual.inputs)
    assert lazy.labels.equal(usual.labels) and lazy.test_labels.equal(usual.test_labels)
    for one, two in ((lazy.test_loader, usual.test_loader), (lazy.unaugmented_loader(), usual.unaugmented_loader())):
        for a, b in zip(one, two, strict=True):
            assert all(x.equal(y) for x, y in zip(a, b, strict=True))
    images, target, index = next(iter(lazy.train_loader))
    plain = {int(i): image for batch in usual.unaugmented_loader() for image, i in zip(batch[0], batch[2], strict=True)}
    assert images.shape == (16, 3, 24, 24) and target.equal(usual.labels[index])
    assert not any(image.equal(plain[int(i)]) for image, i in zip(images, index, strict=True))


def test_one_class_alone(tmp_path):
    for split in ('train', 'test'):
        write_images(tmp_path / split, 2, classes=('ant',))
    with pytest.raises(UserError, match='--dataset folder: has the class ant alone; a classifier needs two or more'):
        dataset.get_dataloaders(data_options(data_dir=str(tmp_path), batch_size=2), CPU)
