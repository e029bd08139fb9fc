"""Whole processes, from start to exit, of one epoch on random images like CIFAR-100's: the reference recipe, and ours.

So what a process does once counts too: imports, reading the data, validating the teacher, compiling.
"""
import hashlib
import json
import os
import pickle
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from dataset import cifar, get_dataloaders
from dataset.teacher_cache.opening import open_cache
from distiller_zoo import get_method
from helper.checkpoint import load_checkpoint, save_checkpoint
from helper.cli import number
from helper.errors import UserError
from models import model_dict, resolve
from models.load import load_net
from options import student_options

from .common import CLASSES, PAIRS, fill_with_noise

ROOT = Path(__file__).resolve().parents[1]
# Runs train_student.py after replacing the MD5 sums of CIFAR-100's files by those of the random files.
START = ("import json, runpy, sys; from dataset import cifar; cifar.MD5.update(json.loads(sys.argv.pop(1))); "
         "runpy.run_path('train_student.py', run_name='__main__')")


def add_arguments(add):
    add('--images', type=number(int, low=1), default=30_000, help='training images')
    add('--test_images', type=number(int, low=1), help='not given: a fifth of --images, at most 10,000')
    add('--flags', default='', help="more flags for train_student.py, as --flags='--amp bfloat16'")
    add('--full_cache', action='store_true', help='ours reads random teacher outputs from a full --teacher_cache')
    add('--cold', action='store_true', help='each process of ours compiles again, with empty caches')


def write_data(folder: Path, counts: dict) -> dict:
    """Write random images in the format of CIFAR-100. counts: images of each file. Returns the MD5 sum of each file."""
    rng, sums = np.random.default_rng(0), {}
    contents = {name: {'data': rng.integers(0, 256, (n, 3 * 32 * 32), dtype=np.uint8),
                       'fine_labels': rng.integers(0, CLASSES, n).tolist()} for name, n in counts.items()}
    contents['meta'] = {'fine_label_names': [str(c) for c in range(CLASSES)]}
    (folder / 'cifar-100-python').mkdir()
    for name, content in contents.items():
        pickled = pickle.dumps(content)
        (folder / 'cifar-100-python' / name).write_bytes(pickled)
        sums[name] = hashlib.md5(pickled, usedforsecurity=False).hexdigest()
    return sums


@torch.no_grad()
def write_teacher(path: Path, name: str) -> None:
    """Write a checkpoint of random weights, with batch norm statistics that keep its logits small."""
    torch.manual_seed(0)
    net = model_dict[resolve(name, 32)](num_classes=CLASSES)
    for _ in range(20):
        net(torch.randn(64, 3, 32, 32))
    save_checkpoint(path, {'arch': resolve(name, 32), 'num_classes': CLASSES, 'model': net.state_dict()})


def write_cache(flags: list, method: str, teacher_name: str, sums: dict) -> None:
    """Fill the --teacher_cache of train_student.py with these flags, and write an accuracy of the teacher."""
    options, device = student_options(flags), torch.device('cpu')
    options.model_t = resolve(teacher_name, 32)
    with patch.dict(cifar.MD5, sums):
        data = get_dataloaders(options, device)
    teacher = load_net(options.path_t, load_checkpoint(options.path_t, '--path-t'), options.model_t, data)
    cache = open_cache(options, get_method(method).spec.needs, teacher, data, device)
    cache.accuracy.save(1.0)
    fill_with_noise(cache)


def seconds(command: list[str], cold: bool) -> float:
    """The seconds from start to end of a process. cold: the compiler's caches are empty. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        caches = ('TORCHINDUCTOR_CACHE_DIR', 'TRITON_CACHE_DIR', 'XDG_CACHE_HOME') if cold else ()
        start = time.perf_counter()
        done = subprocess.run([*command, '--save_dir', f'{folder}/save'], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, **{name: f'{folder}/{name}' for name in caches}})
        duration = time.perf_counter() - start
    if done.returncode:
        last_line = done.stderr.strip().splitlines()[-1:]       # names the error, of a traceback too
        raise UserError(f'whole: a process ended with {done.returncode}: {"".join(last_line)[:500]}')
    return duration


def measure_pair(pair, opt, folder: Path) -> list[dict]:
    """A row for each side, medians of rounds in turn. Unless --cold, each side runs once before them."""
    teacher, student, method = pair.split(',')
    tests = opt.test_images or max(1, min(10_000, opt.images // 5))
    sums = write_data(folder, {'train': opt.images, 'test': tests})
    write_teacher(folder / 'teacher.pth', teacher)
    shared = ['--path_t', folder / 'teacher.pth', '--data_dir', folder, '--batch_size', opt.batch_size, '--gpu_id',
              opt.gpu_id]
    student_flags = ['--dataset', 'cifar100', '--distill', method, '--model_s', student]
    flags = [*(['--compile'] if opt.compile else []), *(['--fast'] if opt.fast else []),
             *(['--amp', opt.amp] if opt.amp else []), *shlex.split(opt.flags)]
    cache_flags = ['--teacher_cache', folder / 'cache'] if opt.full_cache else []
    if opt.full_cache:
        write_cache([*map(str, [*student_flags, *shared, *cache_flags])], method, teacher, sums)
    sides = {'reference': ['-m', 'benchmarks.reference', '--pair', pair, '--num_workers', opt.num_workers, *shared],
             ' '.join(['train_student.py', *flags, *cache_flags[:1]]): [
                 '-c', START, json.dumps(sums), *student_flags, '--epochs', 1, '--seed', 0, *flags, *cache_flags,
                 *shared]}
    rounds = []
    for _ in range(opt.rounds + (not opt.cold)):
        rounds.append([seconds([sys.executable, *map(str, words)], opt.cold) for words in sides.values()])
        print(f'{pair}: ' + ', '.join(f'{s:.1f} s' for s in rounds[-1]), file=sys.stderr, flush=True)
    columns = list(zip(*rounds[-opt.rounds:], strict=True))
    medians = [statistics.median(column) for column in columns]
    return [{'pair': pair, 'side': side, 'seconds': median, 'images/s': opt.images / median,
             'ratio': medians[0] / median, 'all rounds': list(column)}
            for side, median, column in zip(sides, medians, columns, strict=True)]


def measure(opt, device):
    """A row for each side of each pair."""
    for pair in opt.pair or PAIRS[:1]:
        with tempfile.TemporaryDirectory() as folder:
            yield from measure_pair(pair, opt, Path(folder))
