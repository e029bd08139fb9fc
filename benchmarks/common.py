"""Shared by the benchmarks: loaders, a method with its nets, alternating timing, memory, and the table."""
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from dataset import Data
from dataset.memory import MemoryLoader
from distiller_zoo import SOFT_LABELS, get_method
from helper import distributed
from helper.cli import table
from helper.compile import compile_forward, keep_memory
from models.find import build as build_net
from models.fold import fold_batchnorm
from options import student_options

CLASSES = 100
N_TRAIN = 50_000        # as CIFAR: the size of memories of all images
PAIRS = ('resnet20,resnet8,kd', 'resnet110,resnet20,kd', 'wrn_40_2,wrn_16_2,attention', 'resnet32x4,resnet8x4,semckd')
DIGITS = {'ratio': 2, 'lower quartile': 2, 'upper quartile': 2, 'memory ratio': 2, 'time ratio': 2, 's a step': 1,
          '32 bits MB': 2, '8 bits MB': 2, '32 bits ms': 2, '8 bits ms': 2, 'speed': 2,
          f'times {SOFT_LABELS}': 2, 'torch ms': 2, 'winograd ms': 2, 'ms a step': 1, 'seconds': 1}


class RepeatedBatch(list):
    """A loader that yields the same batch `steps` times."""

    def __init__(self, batch, steps):
        super().__init__([batch] * steps)
        self.batch_size = len(batch[1])
        self.n_samples = steps * self.batch_size


class WorkerProcessLoader(DataLoader):
    """A loader with worker processes, whose batches are moved to the device one after the other."""

    def __init__(self, images, batch_size, num_workers, device, shuffle=True):
        context = 'fork' if num_workers and sys.platform == 'linux' else None       # Linux's default in a script
        super().__init__(images, batch_size, shuffle, num_workers=num_workers, pin_memory=device.type == 'cuda',
                         persistent_workers=num_workers > 0, multiprocessing_context=context)
        self.device, self.n_samples = device, len(images)

    def __iter__(self):
        for batch in super().__iter__():
            yield [t.to(self.device) for t in batch]


def random_images(opt):
    """(uint8 images (N, 3, 32, 32), labels (N,)) for opt.steps batches in each process."""
    generator = torch.Generator().manual_seed(0)
    n = opt.batch_size * opt.steps * distributed.world_size()
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, CLASSES, (n,), generator=generator)


def memory_loader(opt, device):
    """The loader of train_student.py, over random images."""
    return MemoryLoader(*random_images(opt), opt.batch_size, device, train=True, rank=distributed.rank(),
                        world_size=distributed.world_size())


def build(pair, opt, device, fast=True, compiled=False, size=32, classes=CLASSES, flags=()):
    """(distiller, optimiser, options) for 'TEACHER,STUDENT,METHOD'.

    fast: as train_student.py prepares them. size, classes: of the images. flags: more of train_student.py.
    """
    teacher_name, student_name, method = pair.split(',')
    torch.manual_seed(0)
    # The nets are untrained: with a large beta, or a real learning rate, some methods diverge within a few steps.
    beta = ['-b', '1'] if get_method(method).spec.published.get('beta') else []
    learning_rate = 1e-9
    options = student_options(['--path-t', '-', '--distill', method, '--model_s', student_name, *beta, '--batch_size',
                               str(opt.batch_size), '--print-freq', str(10**9), *flags])
    options.model_t = teacher_name
    teacher, student = (build_net(name, classes, size) for name in (teacher_name, student_name))
    distiller = get_method(method)(student, teacher, options,
                                   Data(None, None, classes, size, torch.arange(N_TRAIN) % classes))
    if distiller.in_first_stage:
        distiller.end_first_stage()
    if fast:
        fold_batchnorm(teacher, size)
        if device.type == 'cpu':
            keep_memory()
    distiller.to(device, memory_format=torch.channels_last if fast else torch.contiguous_format)
    if compiled:
        compile_forward(distiller, opt.batch_size, device)
    return distiller, distiller.make_optimizer(learning_rate, options), options


def fill_with_noise(cache) -> None:
    """Fill a teacher cache with random outputs."""
    generator = torch.Generator().manual_seed(0)
    for field, file in cache.files.items():
        encoding = cache.layout.encodings[field]
        for slots in np.array_split(np.arange(file.slots), 1 + file.slots // 10**5):
            outputs = torch.randn(len(slots), encoding.n_values, generator=generator)
            file.write(slots, encoding.encode(outputs).numpy())


def new_process() -> ProcessPoolExecutor:
    """An executor with one new process."""
    return ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))


def seconds(run, device) -> float:
    """The seconds that run() takes, until the device has finished."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def alternate(sides: dict, rounds: int, device) -> dict:
    """name -> median seconds of each function in `sides`: all in turn in each round, after a round to warm up."""
    measured = [[seconds(run, device) for run in sides.values()] for _ in range(rounds + 1)]
    return {name: statistics.median(column)
            for name, column in zip(sides, zip(*measured[1:], strict=True), strict=True)}


def compare(label: str, sides: dict, images: int, opt, device, **columns) -> list[dict]:
    """A row for each function in `sides`, which processes so many images: its speed, and the ratio to the first one."""
    median = alternate(sides, opt.rounds, device)
    first = next(iter(median.values()))
    return [{**columns, label: name, 'images/s': images / s, 'ratio': first / s} for name, s in median.items()]


def reset_peak_memory(device) -> None:
    """Set the peak of memory to what is in use now."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == 'linux':
        Path('/proc/self/clear_refs').write_text('5')


def peak_memory(device) -> float | None:
    """The peak in MiB: of tensors on a GPU, of the whole process on a CPU; None if the system does not report it."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform != 'linux':
        return None
    return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024


def show(rows: list[dict]) -> None:
    """Print the rows as a table, without their lists and dictionaries."""
    heads = [key for key, value in rows[0].items() if not isinstance(value, (list, dict))]
    cells = [['-' if row[key] is None else f'{row[key]:.{DIGITS.get(key, 0)}f}' if isinstance(row[key], float) else
              str(row[key]) for key in heads] for row in rows]
    print(table(heads, cells, ''.join('<' if isinstance(rows[0][key], str) else '>' for key in heads)))
