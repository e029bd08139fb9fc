"""--cache_epochs and --cache_topk: teacher outputs stored for random crops, whose augmentation repeats."""
import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CPU, data_options, losses_of_epoch, options

import train_student
from dataset import get_dataloaders
from dataset.teacher_cache.encoding import Numbers, Probabilities
from dataset.teacher_cache.file import CacheFile
from dataset.teacher_cache.loader import TeacherOutputLoader
from dataset.teacher_cache.opening import open_cache
from distiller_zoo import get_method
from distiller_zoo.base import Distiller
from helper.errors import UserError
from models import model_dict
from scripts import fill_teacher_cache

# How an output is stored

def test_numbers():
    values = torch.randn(3, 5)
    assert torch.equal(Numbers(5).decode(Numbers(5).encode(values)), values)
    half = Numbers(5, np.float16)
    assert half.encode(values).dtype == torch.float16 and torch.equal(half.decode(half.encode(values)),
                                                                      values.half().float())


def test_all_probabilities_in_16_bits():
    logits = 5 * torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) + 100
    encoding = Probabilities(1000)
    stored = encoding.encode(logits)
    assert stored.dtype == torch.uint8 and stored.shape == (4, encoding.width) == (4, 4 + 2000)
    decoded = encoding.decode(stored)
    assert (decoded - logits).abs().max() < 2**-11 * 40
    assert (decoded.softmax(1) - logits.softmax(1)).abs().sum(1).max() < 1e-3


@pytest.mark.parametrize('classes, width', [(1000, 48), (40000, 68)])
def test_the_largest_probabilities(classes, width):
    """The classes and their probabilities in 16 bits, the sum of the others exactly, divided evenly."""
    logits = 3 * torch.randn(4, classes, generator=torch.Generator().manual_seed(0))
    encoding = Probabilities(classes, 10)
    stored = encoding.encode(logits)
    assert stored.shape == (4, width)       # 4 + 4 + 10 * 2 + 10 * (2 or 4)
    decoded, p = encoding.decode(stored).softmax(1), logits.softmax(1)
    top, index = p.topk(10)
    assert torch.equal(decoded.topk(10).indices.sort().values, index.sort().values)
    assert torch.allclose(decoded.gather(1, index), top, rtol=1e-2, atol=0)
    rest = 1 - top.sum(1)
    others = decoded.scatter(1, index, 0)
    assert torch.allclose(others.sum(1), rest, rtol=1e-2, atol=0)
    assert torch.allclose(others.max(1).values, rest / (classes - 10), rtol=1e-2, atol=0)
    # No more probability moves than that of the other classes.
    assert ((decoded - p).abs().sum(1) <= 2 * rest + 1e-2).all()


def test_certain_logits_stay_finite():
    logits = torch.tensor([[1e6, -1e6, 0, 0, 0]])
    for k in (None, 1, 4):
        encoding = Probabilities(5, k)
        decoded = encoding.decode(encoding.encode(logits))
        assert decoded.isfinite().all() and decoded.softmax(1)[0].tolist() == [1, 0, 0, 0, 0]


# The augmentation

RECIPES = {
    'crops': {'crop': 'resized'},
    'crops in memory': {'crop': 'resized', 'images_in': 'memory'},
    'two views': {'crop': 'resized', 'views': ('weak', 'strong')},
    'colours': {'crop': 'resized', 'aa': 'rand-m9', 'color_jitter': 0.4, 'vflip': 0.5},
    'padded': {'crop': 'padded', 'images_in': 'memory', 'aa': 'rand-m9', 'vflip': 0.5},
    'mixed': {'crop': 'resized', 'mixup': 0.2, 'cutmix': 1.0, 'reprob': 0.5},
    'padded and mixed': {'crop': 'padded', 'images_in': 'memory', 'mixup': 0.2, 'reprob': 0.5, 'batch_size': 8,
                         'train_fraction': 0.4}}


def repeated(tree, views=('weak',), **changes):
    """The Data of repeated epochs: 12 training images in batches of 4."""
    opt = data_options(**{'data_dir': str(tree), 'train_fraction': 0.25, 'batch_size': 4, 'num_workers': 0,
                          'images_in': 'disk', 'smoothing': 0, 'cache_epochs': 2, 'cache_seed': 0, **changes})
    return get_dataloaders(opt, CPU, views=views)


def epoch_of(data, epoch):
    """(images, targets) of an epoch by the index of the image."""
    data.train_loader.order.epoch = epoch
    images, target, index = zip(*data.train_loader, strict=True)
    order = torch.cat(index).argsort()
    dim = images[0].dim() - 4
    return torch.cat(images, dim).index_select(dim, order), torch.cat(target)[order]


@pytest.mark.parametrize('recipe', RECIPES)
def test_the_augmentation_repeats(tree, recipe):
    """It follows from --cache_seed, the epoch modulo N and the image, whatever --seed and the epochs before."""
    if recipe != 'crops':
        pytest.importorskip('timm')
    settings = RECIPES[recipe]
    first, second, third = (epoch_of(data, epoch) for data in [repeated(tree, **settings)] for epoch in (1, 2, 3))
    assert torch.equal(first[0], third[0]) and torch.equal(first[1], third[1])
    assert not torch.equal(first[0], second[0])
    again = epoch_of(repeated(tree, **settings, seed=5), 4)
    assert torch.equal(second[0], again[0]) and torch.equal(second[1], again[1])
    assert not torch.equal(first[0], epoch_of(repeated(tree, **settings, cache_seed=1), 1)[0])


def test_the_order_is_that_of_the_run(tree):
    def orders(**changes):
        loader = repeated(tree, crop='resized', **changes).train_loader
        return [torch.cat([index for _, _, index in loader]) for _ in range(2)]
    one, two = orders()
    assert not torch.equal(one, two) and not torch.equal(one, orders(seed=5)[0])
    pytest.importorskip('timm')
    one, two = orders(mixup=0.2)        # the mixed images depend on it
    assert torch.equal(one, two) and torch.equal(one, orders(mixup=0.2, seed=5)[0])


def test_an_interrupted_epoch_of_mixed_images(tree):
    pytest.importorskip('timm')
    data = repeated(tree, **RECIPES['mixed'])
    whole = list(data.train_loader)
    data.train_loader.order.first_batch = 1
    for a, b in zip(whole[1:], data.train_loader, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Training

def build(tree, cache_dir=None, method='kd', topk='all', recipe='crops', **changes):
    """(distiller, training loader, cache or None, list with the number of images that the teacher computed)."""
    torch.manual_seed(0)
    changes = {**RECIPES[recipe], 'views': get_method(method).spec.views, **changes}
    data = repeated(tree, **changes)
    opt = options(method, teacher_cache=cache_dir and str(cache_dir), cache_topk=topk, cache_epochs=2, **changes)
    distiller = get_method(method)(*(model_dict['resnet8'](num_classes=4) for _ in range(2)), opt, data)
    asked, ask = [], distiller.teacher_outputs

    def count(images):
        asked[-1] += len(images)
        return ask(images)
    distiller.teacher_outputs = count
    if not cache_dir:
        return distiller, data.train_loader, None, asked
    cache = open_cache(opt, distiller.spec.needs, distiller.teacher, data, CPU)
    return distiller, TeacherOutputLoader(data.train_loader, cache, count), cache, asked


def curve(*arguments, epochs=3, **changes):
    """(losses of the steps, number of images that the teacher computed in each epoch). The arguments of build()."""
    distiller, loader, _, asked = build(*arguments, **changes)
    optimizer, losses = distiller.make_optimizer(1e-4, options('kd')), []
    distiller.train()
    for loader.order.epoch in range(1, epochs + 1):
        asked.append(0)
        losses += losses_of_epoch(distiller, loader, optimizer)
    return losses, asked


def fill(*arguments, **changes):
    """The number of images that the teacher computes to fill the cache. The arguments of build()."""
    distiller, loader, cache, asked = build(*arguments, **changes)
    asked.append(0)
    fill_teacher_cache.fill_epochs(cache, SimpleNamespace(outputs=distiller.teacher_outputs), loader.loader)
    return asked[0]


@pytest.mark.parametrize('method, recipe', [('kd', 'crops'), ('srrl', 'crops in memory'), ('mlld', 'two views'),
                                            ('kd', 'padded and mixed')])
def test_the_curve_of_a_run_without(tree, tmp_path, method, recipe):
    """While the files are filled, and with full ones, which need no teacher."""
    if recipe != 'crops':
        pytest.importorskip('timm')
    expected, _ = curve(tree, method=method, recipe=recipe)
    n = {'two views': 24, 'padded and mixed': 16}.get(recipe, 12)       # two batches of 8, a short one is left out
    filling, asked = curve(tree, tmp_path, method, recipe=recipe)
    assert asked == [n, n, 0]
    full, asked = curve(tree, tmp_path, method, recipe=recipe)
    assert sum(asked) == 0
    assert filling == full == pytest.approx(expected, rel=1e-3)
    exact, _ = curve(tree, tmp_path, method, None, recipe, epochs=1)
    assert exact == pytest.approx(expected[:len(exact)], rel=1e-5)


def test_mixed_images_are_stored_in_their_batches(tree, tmp_path):
    """Also those after a batch that an ended run has stored. The cache is full without the images that are left out."""
    pytest.importorskip('timm')
    recipe = {'recipe': 'padded and mixed'}
    expected, _ = curve(tree, epochs=2, **recipe)
    _, loader, cache, asked = build(tree, tmp_path, **recipe)
    asked.append(0)
    next(iter(loader))
    assert '2 files (25 % of' in str(cache) and not cache.full
    assert [fill(tree, tmp_path, **recipe) for _ in range(2)] == [24, 0]
    assert '2 files (100 % of' in str(cache) and cache.full
    assert curve(tree, tmp_path, epochs=2, **recipe) == (pytest.approx(expected, rel=1e-3), [0, 0])


def test_other_seeds_share_the_files(tree, tmp_path):
    assert fill(tree, tmp_path) == 24
    assert sum(curve(tree, tmp_path, 'dkd', epochs=1, seed=3)[1]) == 0
    for changes in ({'cache_seed': 3}, {'topk': 2}, {'hflip': 0.4}):
        assert sum(curve(tree, tmp_path, epochs=1, **changes)[1]) == 12


def test_the_largest_two_probabilities(tree, tmp_path):
    expected, _ = curve(tree)
    assert curve(tree, tmp_path, topk=2)[0] == pytest.approx(expected, rel=0.05)


def test_no_room_for_the_second_epoch(tree, tmp_path, capsys, monkeypatch):
    write = CacheFile._write

    def full(self, offset, content):
        if 'epoch002' in self.path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, offset, content)
    monkeypatch.setattr(CacheFile, '_write', full)
    losses, asked = curve(tree, tmp_path, epochs=4)
    assert asked == [12, 12, 0, 12] and losses == pytest.approx(curve(tree, epochs=4)[0], rel=1e-3)
    assert capsys.readouterr().out.count('no more outputs are cached (No space left on device)') == 1


# The command line

def flags(teacher, small, *more):
    return ['--path-t', teacher, '--model_s', 'resnet8', *small, '--crop', 'resized', '--cache_epochs', 2, *more]


def test_the_script_fills_all_epochs(call, teacher, small, tmp_path, monkeypatch, capsys):
    """Also a part of them, as after an interruption; runs then never call the teacher. 4 images of 24 are left out."""
    pytest.importorskip('timm')
    more = ['--teacher_cache', tmp_path / 'cache', '--cache_topk', 2, '--save_dir', tmp_path, '--images_in', 'disk',
            '--mixup', 0.2, '--train_fraction', 0.5, '--batch_size', 10, '--num_workers', 0]
    call(train_student.main, *flags(teacher, small, *more, '--epochs', 1))
    assert '_epoch001_logits.cache (0 % of' in capsys.readouterr().out
    call(fill_teacher_cache.main, *flags(teacher, small, *more, '--epochs', 3))
    out = capsys.readouterr().out
    assert '_epoch001_logits.cache and so on, 2 files (50 % of' in out and '2 files (100 % of' in out
    monkeypatch.setattr(Distiller, 'teacher_outputs', None)
    call(train_student.main, *flags(teacher, small, *more, '--epochs', 3, '--trial', 2, '--seed', 7))
    assert len([*(tmp_path / 'cache').glob('*.cache')]) == 2


def test_the_classes_limit_the_largest(call, teacher, small, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *flags(teacher, small, '--teacher_cache', tmp_path, '--cache_topk', 4))
    assert caught.value.code == 2
    assert capsys.readouterr().err == 'error: --cache_topk 4: the data have 4 classes; give less, or all\n'


@pytest.mark.parametrize('words, text', [
    (['--cache_topk', '3'], '--cache_topk 3: has no effect without --teacher_cache'),
    (['--cache_topk', 'none', '--teacher_cache'], 'none: give a whole number of at least 1'),
    (['--cache_epochs', '0'], '0: give a whole number of at least 1')])
def test_refused(words, text):
    with pytest.raises((UserError, SystemExit)) as caught:
        train_student.student_options(['--path-t', 'x', *words])
    assert text in str(caught.value)


def test_mixed_images_of_several_processes_are_left_to_their_run(call, teacher, small, capsys):
    with pytest.raises(SystemExit):
        call(fill_teacher_cache.main, *flags(teacher, small, '--mixup', 0.2, '--multiprocessing-distributed'))
    assert 'depend on the number of processes, and this script is one; let the run fill' in capsys.readouterr().err
