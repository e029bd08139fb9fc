"""Whole processes, from start to exit, of one epoch on random images like CIFAR-100's: the reference recipe, and ours.

So that what a process does once counts too: its imports, reading the data, validating the teacher, compiling.
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
from dataset.teacher_cache import open_cache
from distiller_zoo import get_method
from helper.checkpoint import load_checkpoint, save_checkpoint
from helper.cli import number, table
from helper.errors import UserError
from models import model_dict, resolve
from models.load import load_net
from options import student_options

from .common import CLASSES
from .recipes import standard_pairs

ROOT = Path(__file__).resolve().parents[1]
# train_student.py as a person starts it, but that the MD5 sums of CIFAR-100's files are those of the random ones.
START = ("import json, runpy, sys; from dataset import cifar; cifar.MD5.update(json.loads(sys.argv.pop(1))); "
         "runpy.run_path('train_student.py', run_name='__main__')")


def add_arguments(add):
    add('--images', type=number(int, low=1), default=30_000, help='training images')
    add('--test_images', type=number(int, low=1), help='not given: a fifth of --images, at most 10,000')
    add('--flags', default='', help="more flags for train_student.py, as --flags='--amp bfloat16'")
    add('--full_cache', action='store_true',
        help="ours finds the teacher's answers, here random ones, in a full --teacher_cache")
    add('--cold', action='store_true', help='each process of ours compiles anew, with empty caches')


def write_data(folder: Path, counts: dict) -> dict:
    """Random images in the files of CIFAR-100, counts: how many in each. Returns the MD5 sum of each file."""
    rng, sums = np.random.default_rng(0), {}
    contents = {name: {'data': rng.integers(0, 256, (n, 3 * 32 * 32), dtype=np.uint8),
                       'fine_labels': rng.integers(0, CLASSES, n).tolist()} for name, n in counts.items()}
    contents['meta'] = {'fine_label_names': [str(c) for c in range(CLASSES)]}
    (folder / 'cifar-100-python').mkdir()
    for name, content in contents.items():
        written = pickle.dumps(content)
        (folder / 'cifar-100-python' / name).write_bytes(written)
        sums[name] = hashlib.md5(written, usedforsecurity=False).hexdigest()
    return sums


@torch.no_grad()
def write_teacher(path: Path, name: str) -> None:
    """A checkpoint of random weights, with statistics in its batch norms that keep its logits small."""
    torch.manual_seed(0)
    net = model_dict[resolve(name, 32)](num_classes=CLASSES)
    for _ in range(20):
        net(torch.randn(64, 3, 32, 32))
    save_checkpoint(path, {'arch': resolve(name, 32), 'num_classes': CLASSES, 'model': net.state_dict()})


def write_cache(folder: Path, pair: str, opt, sums: dict) -> None:
    """A full --teacher_cache of random answers in folder/cache, and an accuracy of the teacher."""
    name, student, method = pair.split(',')
    options = student_options(['--path-t', str(folder / 'teacher.pth'), '--dataset', 'cifar100', '--data_dir',
                               str(folder), '--distill', method, '--model_s', student, '--teacher_cache',
                               str(folder / 'cache'), '--batch_size', str(opt.batch_size)])
    options.model_t, device = resolve(name, 32), torch.device('cpu')
    with patch.dict(cifar.MD5, sums):
        data, rng = get_dataloaders(options, device), np.random.default_rng(0)
    teacher = load_net(options.path_t, load_checkpoint(options.path_t, '--path-t'), options.model_t, data)
    cache = open_cache(options, get_method(method).spec.needs, teacher, data, device)
    cache.save_accuracy(1.0)
    for file in cache.files.values():
        for slots in np.array_split(np.arange(file.slots), 1 + file.slots // 10**5):
            file.write(slots, rng.normal(size=(len(slots), file.width)).astype(np.float32))


def commands(pair: str, opt, folder: Path, sums: dict) -> dict:
    """side -> the command of its process, but for --save_dir."""
    _, student, method = pair.split(',')
    shared = ['--path_t', folder / 'teacher.pth', '--data_dir', folder, '--batch_size', opt.batch_size, '--gpu_id',
              opt.gpu_id]
    flags = [*(['--compile'] if opt.compile else []), *(['--fast'] if opt.fast else []),
             *(['--amp', opt.amp] if opt.amp else []), *shlex.split(opt.flags)]
    cache = ['--teacher_cache', folder / 'cache'] if opt.full_cache else []
    sides = {'reference': ['-m', 'benchmarks.reference', '--pair', pair, '--num_workers', opt.num_workers],
             ' '.join(['train_student.py', *flags, *cache[:1]]): [
                 '-c', START, json.dumps(sums), '--dataset', 'cifar100', '--distill', method, '--model_s', student,
                 '--epochs', 1, '--seed', 0, *flags, *cache]}
    return {side: [sys.executable, *map(str, (*words, *shared))] for side, words in sides.items()}


def seconds(command: list[str], cold: bool) -> float:
    """From the start to the end of a process. cold: with empty caches of the compiler, of its own. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        caches = ('TORCHINDUCTOR_CACHE_DIR', 'TRITON_CACHE_DIR', 'XDG_CACHE_HOME') if cold else ()
        start = time.perf_counter()
        done = subprocess.run([*command, '--save_dir', f'{folder}/save'], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, **{name: f'{folder}/{name}' for name in caches}})
        took = time.perf_counter() - start
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:]        # of a traceback too, the last line says what is wrong
        raise UserError(f'whole: a process ended with {done.returncode}: {"".join(said)[:500]}')
    return took


def measure(opt, device):
    """A row for each side of each pair, medians of rounds by turns. Unless --cold, each side runs once before them."""
    rows, tests = [], opt.test_images or max(1, min(10_000, opt.images // 5))
    for pair in opt.pair or standard_pairs()[:1]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            sums = write_data(folder, {'train': opt.images, 'test': tests})
            write_teacher(folder / 'teacher.pth', pair.split(',')[0])
            if opt.full_cache:
                write_cache(folder, pair, opt, sums)
            sides, found = commands(pair, opt, folder, sums), []
            for _ in range(opt.rounds + (not opt.cold)):
                found.append([seconds(command, opt.cold) for command in sides.values()])
                print(f'{pair}: ' + ', '.join(f'{s:.1f} s' for s in found[-1]), file=sys.stderr, flush=True)
        took = list(zip(*found[-opt.rounds:], strict=True))
        medians = [statistics.median(column) for column in took]
        rows += [{'pair': pair, 'side': side, 'seconds': median, 'images/s': opt.images / median,
                  'ratio': medians[0] / median, 'all rounds': list(column)}
                 for side, median, column in zip(sides, medians, took, strict=True)]
    return rows


def show(rows):
    """The rows as a table."""
    cells = [(row['pair'], row['side'], f'{row["seconds"]:.1f}', f'{row["images/s"]:.0f}', f'{row["ratio"]:.2f}')
             for row in rows]
    print(table(('pair', 'side', 'seconds', 'images/s', 'ratio'), cells, '<<>>>'))
