"""The in-memory loader against torchvision's per-image pipeline, and the sources of images."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CLASSES, write_images
from PIL import Image
from torchvision import transforms

import dataset
from dataset.image import read_rgb
from dataset.memory import MEAN, STD, MemoryLoader
from helper.errors import UserError

CPU = torch.device('cpu')


def options(**changes):
    return SimpleNamespace(**{'dataset': 'folder', 'data_dir': '.', 'image_size': 16, 'batch_size': 16, 'seed': 0,
                              'num_workers': 2, 'channels_last': True, 'use_lmdb': False, 'dali': None,
                              'skip_bad_images': False, **changes})


def test_augmentation_is_torchvisions():
    """Every offset and flip, and no other image, with the frequencies of the per-image pipeline."""
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


def test_drop_last_and_memory_format():
    images, target = torch.zeros(50, 3, 8, 8, dtype=torch.uint8), torch.zeros(50, dtype=torch.int64)
    loader = MemoryLoader(images, target, 16, CPU, train=True, smallest_batch=16)
    assert len(loader) == 3 and [len(b[1]) for b in loader] == [16, 16, 16]
    assert next(iter(loader))[0].is_contiguous(memory_format=torch.channels_last)
    plain = MemoryLoader(images, target, 16, CPU, train=True, channels_last=False)
    assert next(iter(plain))[0].is_contiguous()


def test_digits():
    data = dataset.get_dataloaders(options(dataset='digits', batch_size=64), CPU)
    assert (data.n_train, data.test_loader.n_samples, data.num_classes, data.image_size) == (1437, 360, 10, 32)
    images, target, _ = next(iter(data.test_loader))
    assert images.shape == (64, 3, 32, 32) and torch.bincount(data.train_loader.target).min() > 100
    assert images.std() > 0.5 and len(target.unique()) == 10


def test_cifar(monkeypatch):
    """The arrays of torchvision's data set arrive as they are."""
    from torchvision import datasets

    class Fake:
        classes = [str(c) for c in range(100)]

        def __init__(self, root, train, download):
            assert download
            rng = np.random.default_rng(train)
            self.data = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
            self.targets = rng.integers(0, 100, 40).tolist()
    monkeypatch.setattr(datasets, 'CIFAR100', Fake)
    data = dataset.get_dataloaders(options(dataset='cifar100'), CPU)
    assert (data.n_train, data.num_classes, data.image_size) == (40, 100, 32)
    images, target, _ = next(iter(data.test_loader))
    fake = Fake('', False, True)
    want = transforms.functional.normalize(transforms.functional.to_tensor(fake.data[0]), MEAN, STD)
    assert torch.equal(images[0], want) and target.tolist() == fake.targets[:16]

    def offline(root, train, download):
        raise OSError('no network')
    monkeypatch.setattr(datasets, 'CIFAR10', offline)
    with pytest.raises(UserError, match='--dataset cifar10: not whole under --data_dir'):
        dataset.get_dataloaders(options(dataset='cifar10'), CPU)


def test_folder(tree):
    data = dataset.get_dataloaders(options(data_dir=str(tree)), CPU)
    assert (data.n_train, data.test_loader.n_samples, data.num_classes, data.image_size) == (48, 24, 4, 16)
    larger = dataset.get_dataloaders(options(data_dir=str(tree), image_size=32), CPU)
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
    """A data folder with one fault, and what the error must say."""
    if kind == 'missing':
        return tmp_path / 'nowhere', 'no such folder'
    if kind == 'empty':
        return tmp_path, 'train'
    write_images(tmp_path / 'train', 8)
    if kind == 'no test':
        return tmp_path, 'test or val'
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


@pytest.mark.parametrize('kind', ['missing', 'empty', 'no test', 'classes differ', 'empty class', 'unreadable'])
def test_bad_folder(tmp_path, kind):
    root, words = bad_tree(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        dataset.get_dataloaders(options(data_dir=str(root)), CPU)
    assert words in str(caught.value) and '\n' not in str(caught.value)


def test_batch_larger_than_the_data(tree):
    with pytest.raises(UserError, match='--batch_size 49: folder has 48 training images'):
        dataset.get_dataloaders(options(data_dir=str(tree), batch_size=49), CPU)
