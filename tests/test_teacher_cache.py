"""--teacher_cache: results equal those without it; its files are shared, filled little by little, and checked."""
import errno
import multiprocessing
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CPU, assert_same, build, free_port, losses_of_epoch, options, outcome

import train_student
from dataset.memory import VARIANTS
from dataset.teacher_cache.cache import TeacherCache
from dataset.teacher_cache.encoding import Numbers
from dataset.teacher_cache.file import CacheFile
from dataset.teacher_cache.layout import CACHED_OUTPUTS, Layout
from dataset.teacher_cache.loader import TeacherOutputLoader
from dataset.teacher_cache.opening import open_cache
from distiller_zoo import distiller_dict
from distiller_zoo.base import Distiller
from helper.errors import UserError
from models.fold import fold_batchnorm
from scripts import fill_teacher_cache

IDENTITY = {'teacher (checksum)': 1}


def cache_file(folder, slots=40, width=5, identity=IDENTITY, name='outputs.cache'):
    return CacheFile(folder / name, identity, slots, width)


def some(*slots, width=5):
    """Slots, and random outputs that depend on the slot alone."""
    return np.array(slots), np.stack([np.random.default_rng(slot).normal(size=width) for slot in slots]).astype('f')


# The file

def test_outputs_are_read_back(tmp_path):
    file, (slots, values) = cache_file(tmp_path), some(3, 39, 0)
    assert file.count() == 0 and not file.has(slots).any()
    file.write(slots, values)
    for other in (file, cache_file(tmp_path)):
        assert other.count() == 3 and (other.read(slots[::-1]) == values[::-1]).all()
    file.write(slots[:1], values[:1] + 1)       # an output is written once
    assert (file.read(slots) == values).all()


def test_the_file_takes_disk_space_as_it_is_filled(tmp_path):
    file = cache_file(tmp_path, 10**6)
    whole = file.needed_bytes()
    assert whole > 20e6
    file.write(*some(0, 1))
    assert 0 < whole - file.needed_bytes() < 10**5


def test_a_process_that_is_killed_while_it_writes(tmp_path, monkeypatch):
    """Values without their checksum do not count as written."""
    file, write = cache_file(tmp_path), CacheFile._write

    def killed(self, offset, content):
        if len(content) == 4:       # the checksum
            raise KeyboardInterrupt
        write(self, offset, content)
    monkeypatch.setattr(CacheFile, '_write', killed)
    with pytest.raises(KeyboardInterrupt):
        file.write(*some(7))
    monkeypatch.undo()
    other = cache_file(tmp_path)
    assert other.values[7].any() and not other.has(np.array([7])).any()
    other.write(*some(7))
    assert (other.read(np.array([7])) == some(7)[1]).all()


def test_one_that_is_killed_before_the_header(tmp_path):
    path = cache_file(tmp_path).path
    size = path.stat().st_size
    path.write_bytes(b'')
    os.truncate(path, size)
    assert cache_file(tmp_path).count() == 0


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == 'a value':
        content[-1] ^= 1
    elif kind == 'a checksum':
        content[4096 + 4 * 39] ^= 1
    elif kind == 'moved':
        content[-20:] = content[-40:-20]
    elif kind == 'short':
        del content[-8:]
    elif kind == 'the header':
        content[5] = 255
    else:
        content = kind.encode()
    path.write_bytes(content)


@pytest.mark.parametrize('kind, words', [
    ('a value', 'is damaged, output 39 is not what was written; remove it'), ('a checksum', 'is damaged, output 39'),
    ('moved', 'is damaged, output 39'), ('short', 'is damaged, it has'), ('the header', 'its beginning is damaged'),
    ('a text of another kind', 'is no teacher cache')])
def test_damage(tmp_path, kind, words):
    cache_file(tmp_path).write(*some(38, 39))
    path = tmp_path / 'outputs.cache'
    damage(path, kind)
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        cache_file(tmp_path).read(np.array([38, 39]))
    assert str(path) in str(caught.value) and words in str(caught.value) and path.read_bytes() == before


def test_a_foreign_file(tmp_path):
    cache_file(tmp_path)
    with pytest.raises(UserError, match=r'belongs to something else \(teacher \(checksum\) 1, now 2\); remove it'):
        cache_file(tmp_path, identity={'teacher (checksum)': 2})
    with pytest.raises(UserError, match='width 5, now 6'):
        cache_file(tmp_path, width=6)
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(UserError, match='pipe: is no file'):
        cache_file(tmp_path, name='pipe')


def test_a_foreign_file_without_its_header(tmp_path):
    """Zeros in place of the header do not make it a new file, and its outputs do not fit another header."""
    file = cache_file(tmp_path)
    file.write(*some(3))
    content = bytearray(file.path.read_bytes())
    file.path.write_bytes(bytes(4096) + content[4096:])
    with pytest.raises(UserError, match='is damaged, it has outputs and no header'):
        cache_file(tmp_path)
    other = cache_file(tmp_path, identity={'teacher (checksum)': 2}, name='other.cache')
    other.path.write_bytes(other.path.read_bytes()[:4096] + content[4096:])
    with pytest.raises(UserError, match='is damaged, output 3'):
        cache_file(tmp_path, identity={'teacher (checksum)': 2}, name='other.cache').read(np.array([3]))


def test_a_file_that_is_cut_while_it_is_used(tmp_path):
    file = cache_file(tmp_path, 10**5)
    file.write(*some(3))
    os.truncate(file.path, 5000)
    with pytest.raises(UserError, match='is damaged, it has 5,000 bytes'):
        file.read(np.array([3]))


@pytest.mark.skipif(os.geteuid() == 0, reason='may write everything')
def test_a_file_that_may_only_be_read(tmp_path):
    file = cache_file(tmp_path)
    file.write(*some(3))
    file.path.chmod(0o444)
    other = cache_file(tmp_path)
    assert not other.writable and (other.read(np.array([3])) == some(3)[1]).all()


def write_all(folder, seed, barrier):
    file = cache_file(folder, 500)
    barrier.wait()
    for slots in np.split(np.random.default_rng(seed).permutation(500), 50):
        values = some(*slots)[1]
        file.write(slots, values + np.float32(1e-3 * seed))     # two processes may differ by rounding


def test_processes_share_a_file(tmp_path):
    context = multiprocessing.get_context('fork')
    barrier = context.Barrier(3)
    processes = [context.Process(target=write_all, args=(tmp_path, seed, barrier)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    file = cache_file(tmp_path, 500)
    assert file.count() == 500
    off = file.read(np.arange(500)) - some(*range(500))[1]
    assert (off.std(1) < 1e-6).all()        # each output is of one process


# The loader

def cached(tmp_path, distiller, loader, opt, method='kd', split='test'):
    data = SimpleNamespace(train_loader=loader, selection_loader=loader, selection_split=split, image_size=16,
                           n_train=loader.n_samples, selection_labels=loader.target)
    opt = SimpleNamespace(**{**vars(opt), 'teacher_cache': str(tmp_path), 'dataset': 'folder'})
    return open_cache(opt, distiller_dict[method].spec.needs, distiller.teacher, data, CPU)


def trained(folder, method='kd', near=False):
    """(distiller, training loader with its cache in the folder or without one, list for the numbers of images that the
    teacher computes). near: with a copy of the cache, as on a GPU."""
    distiller, loader, opt = build(method, 'resnet8', batch=4, size=8)
    fold_batchnorm(distiller.teacher, 8)
    asked, ask = [], distiller.teacher_outputs

    def count(images, *rest):
        asked.append(len(images))
        return ask(images, *rest)
    distiller.teacher_outputs = count
    if not folder:
        return distiller, loader, asked
    cache = cached(folder, distiller, loader, opt, method)
    if near:
        cache.copy_to_device()
    return distiller, TeacherOutputLoader(loader, cache, count), asked


def curve(folder, method='kd', steps=24, near=False):
    """(losses of the steps, number of images that the teacher computed)."""
    distiller, loader, asked = trained(folder, method, near)
    optimizer, losses = distiller.make_optimizer(0.001, options(method)), []
    distiller.train()
    while len(losses) < steps:
        losses += losses_of_epoch(distiller, loader, optimizer)
    return losses[:steps], sum(asked)


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    """A folder with the full cache of kd."""
    folder = tmp_path_factory.mktemp('full')
    distiller, loader, _ = trained(folder)
    fill_teacher_cache.fill(loader.cache, distiller.teacher, loader, 64)
    assert loader.cache.full
    return folder


def test_the_curve_of_a_run_without(full, tmp_path):
    """While the cache is filled, and with a full one."""
    expected, asked = curve(None)
    filling, fewer = curve(tmp_path)
    assert 0 < fewer < asked
    (read, none), (near, still_none) = curve(full), curve(full, near=True)
    assert none == still_none == 0
    for found in (filling, read, near):
        assert found == pytest.approx(expected, rel=1e-4) and found[:10] == pytest.approx(expected[:10], rel=1e-5)


@pytest.mark.parametrize('near', [False, True])
def test_the_embedding_too(full, tmp_path, near):
    """The logits that another method has cached are used, and the embedding is added."""
    folder = shutil.copytree(full, tmp_path / 'cache')
    expected, asked = curve(None, 'srrl', 9)
    found, asked_too = curve(folder, 'srrl', 9, near)
    assert found == pytest.approx(expected, rel=1e-4) and asked_too > 0
    assert sorted(path.name.split('_')[-1] for path in folder.glob('*.cache')) == ['embedding.cache', 'logits.cache']


@pytest.mark.parametrize('method', [name for name, m in distiller_dict.items() if m.spec.is_cacheable(CACHED_OUTPUTS)])
def test_every_cacheable_method(tmp_path, method):
    """A step with given teacher outputs equals one that computes them, and needs no teacher on the device."""
    losses = []
    for told in (False, True):
        distiller, loader, opt = build(method, 'resnet8', batch=4, size=8)
        images, target, index = next(iter(loader))
        out = distiller.teacher_outputs(images) if images.dim() == 4 else [*map(distiller.teacher_outputs, images)]
        if told and not distiller.spec.reads_teacher:
            distiller.moves_teacher = False
            distiller.to(torch.float64).to(torch.float32)
            distiller.teacher = None
        torch.manual_seed(1)
        losses.append(distiller(images, target, index, *([out] if told else []))[0]['loss'].item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize('stored, asked', [([0, 1, 2], 8), ([7], 7), ([0, 2], 6), (range(8), 0)])
def test_a_part_of_a_batch_is_cached(tmp_path, stored, asked):
    """The teacher computes what is missing; the whole batch after a kill, which leaves the first outputs."""
    distiller, loader, opt = build('kd')
    cache, images, calls = cached(tmp_path, distiller, loader, opt), torch.randn(8, 3, 16, 16), []

    def count(images):
        calls.append(len(images))
        return distiller.teacher_outputs(images)
    outputs, slots = TeacherOutputLoader(loader, cache, count).outputs, np.arange(8)
    expected = distiller.teacher_outputs(images).logits
    cache.put(slots[[*stored]], {'logits': expected[[*stored]]})
    assert torch.allclose(outputs(images, slots).logits, expected, rtol=1e-4, atol=1e-5)
    assert sum(calls) == asked and cache.has(slots).all()


def test_no_room_for_the_files(tmp_path, capsys, monkeypatch):
    def full(self, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(CacheFile, '_write', full)
    distiller, loader, opt = build('kd')
    assert cached(tmp_path, distiller, loader, opt) is None
    assert 'the disk is full, so no outputs are cached' in capsys.readouterr().out
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='--teacher_cache .*/file/x: .* cannot be used .*; give another folder'):
        cached(tmp_path / 'file' / 'x', distiller, loader, opt)


def test_the_teachers_accuracy(tmp_path):
    """Later runs with the same test set read it; a file that cannot be written is ignored."""
    distiller, loader, opt = build('kd')
    cached(tmp_path, distiller, loader, opt).accuracy.save(12.5)
    assert cached(tmp_path, distiller, loader, opt).accuracy.value == 12.5
    loader.target[0] += 1
    cache = cached(tmp_path, distiller, loader, opt)
    assert cache.accuracy.value is None
    assert cached(tmp_path, distiller, loader, opt, split='val').accuracy.value is None     # it is that of the test set
    cached(tmp_path, distiller, loader, opt, split='val').accuracy.save(50.0)
    both = [cached(tmp_path, distiller, loader, opt, split=split).accuracy.value for split in ('val', 'test')]
    assert both == [50.0, None]
    cache.layout.accuracy_file.unlink()
    cache.layout.accuracy_file.mkdir()
    cache.accuracy.save(12.5)


def test_outputs_of_another_process_reach_the_device(tmp_path):
    """The copy on a GPU gets what other processes write after it was made."""
    distiller, loader, opt = build('kd')
    one, two = (cached(tmp_path, distiller, loader, opt) for _ in range(2))
    two.copy_to_device()
    slots, values = some(5, 9, width=10)
    one.put(slots, {'logits': torch.from_numpy(values)})
    assert two.has(np.array([5, 6, 9])).tolist() == [True, False, True]
    assert (two.get(slots)['logits'].numpy() == values).all()


def test_a_full_disk_ends_the_filling(tmp_path, capsys, monkeypatch):
    write, written = CacheFile._write, []

    def full(self, offset, content):
        written.append(offset)
        if len(written) > 19:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, offset, content)
    monkeypatch.setattr(CacheFile, '_write', full)
    losses, _ = curve(tmp_path, steps=9)
    monkeypatch.undo()
    out = capsys.readouterr().out
    assert out.count('no more outputs are cached (No space left on device)') == 1
    assert losses == pytest.approx(curve(None, steps=9)[0], rel=1e-5)
    content = next(tmp_path.glob('*.cache')).read_bytes()
    assert np.count_nonzero(np.frombuffer(content, np.uint32, 12 * VARIANTS, 4096)) == 9


def test_too_little_room(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: SimpleNamespace(free=1000))
    distiller, loader, opt = build('kd')
    cache = cached(tmp_path, distiller, loader, opt)
    assert not cache.writable and 'no more outputs are cached: it would take another' in capsys.readouterr().out
    list(TeacherOutputLoader(loader, cache, distiller.teacher_outputs))
    assert cache.files['logits'].count() == 0


# The command line

def student(call, teacher, small, save, *flags):
    call(train_student.main, '--path-t', teacher, '--model_s', 'resnet8', '--save_dir', save, *small, *flags)


def test_a_full_cache_needs_no_teacher(call, teacher, small, tmp_path, monkeypatch, capsys):
    """The script fills it, with the teacher's accuracy; two runs then never run the teacher."""
    small = [*small, '--train_fraction', 0.125, '--batch_size', 3]
    flags = ['--path-t', teacher, '--model_s', 'resnet8', '--save_dir', tmp_path, *small]
    call(fill_teacher_cache.main, *flags, '--distill', 'rkd')
    assert '(100 % of 0.03 MB)' in capsys.readouterr().out
    student(call, teacher, small, tmp_path / 'without')
    expected = capsys.readouterr().out
    monkeypatch.setattr(Distiller, 'teacher_outputs', None)
    student(call, teacher, small, tmp_path, '--teacher_cache')
    found = capsys.readouterr().out

    def line(text, start):
        return next(line for line in text.splitlines() if line.startswith(start))
    assert line(found, 'teacher top-1') == line(expected, 'teacher top-1')
    assert line(found, 'epoch 1')[:40] == line(expected, 'epoch 1')[:40]
    student(call, teacher, small, tmp_path, '--teacher_cache', '--distill', 'rkd')


def test_resumed_to_the_bit(call, teacher, small, tmp_path):
    flags = ['--teacher_cache', tmp_path / 'cache']
    student(call, teacher, small, tmp_path / 'whole', *flags, '--epochs', 2)
    shutil.rmtree(tmp_path / 'cache')
    for epochs in (1, 2):
        student(call, teacher, small, tmp_path / 'parts', *flags, '--epochs', epochs, '--resume', 'auto')
    assert_same(outcome(tmp_path / 'whole'), outcome(tmp_path / 'parts'))


@pytest.mark.slow
def test_two_processes_share_it(call, teacher, small, tmp_path):
    flags = ['--gpu_id', 'cpu,cpu', '--multiprocessing-distributed', '--dist-url', f'tcp://127.0.0.1:{free_port()}']
    student(call, teacher, small, tmp_path, *flags, '--teacher_cache')
    file = next(tmp_path.glob('teacher_cache/*_logits.cache'))
    assert np.count_nonzero(np.fromfile(file, np.uint32, 48 * VARIANTS, offset=4096)) == 48


@pytest.mark.parametrize('flags, words', [
    (['--distill', 'semckd'], '--teacher_cache: --distill semckd needs teacher outputs other than logits and embedding'
                              '; it goes with '),
    (['--distill', 'semckd'], ' correlation, '), (['--distill', 'semckd'], ' rkd, '),
    (['--distill', 'mlld'], '--teacher_cache: --distill mlld uses several views of an image; give --cache_epochs N'),
    (['--distill', 'rkd+hint', '-b', '1,1'], '--distill rkd+hint needs teacher outputs other than'),
    (['--aa', 'rand-m9'], '--aa rand-m9: --teacher_cache only stores outputs for crops and flips from left to right; '
                          'give --cache_epochs N'),
    (['--dataset', 'imagenet'], '--teacher_cache: random crops of --dataset imagenet have too many variants to store; '
                                'give --cache_epochs N'),
    (['--cache_seed', '1'], '--cache_seed 1: has no effect without --cache_epochs'),
    (['--cache_epochs', '2', '--dataset', 'imagenet', '--dali', 'cpu'],
     '--cache_epochs 2: --dali cpu cannot repeat an epoch; leave one of the two out'),
    (['--dataset', 'imagenet', '--dali', 'cpu'],
     '--teacher_cache: --dali cpu cannot repeat an epoch; leave one of the two out')])
def test_refused(flags, words):
    with pytest.raises(UserError) as caught:
        train_student.student_options(['--path-t', 'x', '--teacher_cache', *flags])
    assert words in str(caught.value)


def test_damage_ends_a_run_in_one_line(call, teacher, small, tmp_path, capsys):
    student(call, teacher, small, tmp_path, '--teacher_cache')
    file = next(tmp_path.glob('teacher_cache/*_logits.cache'))
    content = bytearray(file.read_bytes())
    for slot in np.flatnonzero(np.frombuffer(content, np.uint32, 48 * VARIANTS, 4096)):
        content[4096 + 4 * slot] ^= 1
    file.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        student(call, teacher, small, tmp_path, '--teacher_cache', '--trial', 2, '--epochs', 20)
    assert caught.value.code == 2 and f'{file}: is damaged, output' in capsys.readouterr().err


def test_cache_of_two_kinds_is_full_when_both_are(tmp_path):
    encodings = dict.fromkeys(CACHED_OUTPUTS, Numbers(5))
    cache = TeacherCache(Layout(tmp_path, 'x', IDENTITY, encodings, 2, 2, None), CPU, None)
    one, two = (cache.layout.open(field, 0) for field in CACHED_OUTPUTS)
    one.write(*some(0, 1))
    assert not cache.full and not cache.has(np.array([0, 1])).any()
    two.write(*some(0, 1))
    assert cache.full
