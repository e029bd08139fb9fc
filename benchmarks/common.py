"""What the benchmarks share: a loader that repeats one batch, timing by turns, building a pair of nets."""
import re
import statistics
import sys
import time
from pathlib import Path

import torch

from dataset import Data
from distiller_zoo import SOFT_LABELS, get_method
from helper.cli import table
from helper.compile import compile_forward
from models import model_dict, resolve
from models.fold import fold_batchnorm
from options import student_options

CLASSES = 100
N_TRAIN = 50_000        # as CIFAR: the size of memories of all images


class OnDevice:
    """A DataLoader whose batches are brought to the device one after the other."""

    def __init__(self, loader, device):
        self.loader, self.device = loader, device
        self.batch_size, self.n_samples = loader.batch_size, len(loader.dataset)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            yield [t.to(self.device) for t in batch]


class Ready:
    """A loader that gives the same batch again and again."""

    def __init__(self, batch, steps):
        self.batch, self.steps, self.batch_size = batch, steps, len(batch[1])
        self.n_samples = steps * self.batch_size

    def __len__(self):
        return self.steps

    def __iter__(self):
        return iter([self.batch] * self.steps)


def build(pair, opt, device, fast=True, compiled=False):
    """(distiller, optimiser, options) of (teacher, student, method)."""
    teacher, student, method = pair
    torch.manual_seed(0)
    gentle = ['-b', '1'] if get_method(method).spec.published.get('beta') else []
    options = student_options(['--path-t', '-', '--distill', method, '--model_s', student, *gentle, '--batch_size',
                               str(opt.batch_size), '--print-freq', str(10**9)])
    options.model_t = teacher
    data = Data(None, None, CLASSES, 32, torch.arange(N_TRAIN) % CLASSES)
    teacher, student = (model_dict[resolve(name, 32)](num_classes=CLASSES) for name in (teacher, student))
    distiller = get_method(method)(student, teacher, options, data)
    if distiller.in_first_stage:
        distiller.end_first_stage()
    if fast:
        fold_batchnorm(teacher, 32)
    distiller.to(device, memory_format=torch.channels_last if fast else torch.contiguous_format)
    if compiled:
        compile_forward(distiller, opt.batch_size, device)
    rate = 1e-9         # the nets are not trained ones: a real rate makes some methods diverge within a few steps
    return distiller, distiller.make_optimizer(rate, options), options


def wait(device):
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def timed(run, device, rounds):
    """Median seconds of run(), after one call to warm up."""
    seconds = []
    for _ in range(rounds + 1):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def alternate(sides, images, opt, device):
    """name -> median images/s of each function in `sides`, one round of each in turn, the first round left out."""
    speeds = {name: [] for name in sides}
    for _ in range(opt.rounds + 1):
        for name, run in sides.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            speeds[name].append(images / (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in speeds.items()}


def begin_peak(device) -> None:
    """Forget the peak of memory so far."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == 'linux':
        Path('/proc/self/clear_refs').write_text('5')


def peak_memory(device) -> float | None:
    """MiB at the peak: of tensors on a GPU, or on a CPU of the whole process; None where the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform != 'linux':
        return None
    return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024


def exhaust(loader):
    for _ in loader:
        pass


def show(rows):
    """Any rows as a table."""
    exact = ('ratio', f'times {SOFT_LABELS}', 'torch ms', 'winograd ms')
    cells = [[f'{v:.2f}' if key in exact else f'{v:.1f}' if key == 'ms a step' else
              f'{v:.0f}' if isinstance(v, float) else str(v) for key, v in row.items()] for row in rows]
    print(table(list(rows[0]), cells, '<' + '>' * (len(rows[0]) - 1)))


def cpu_name():
    """The processor, as Linux names it, and the threads that torch uses."""
    found = re.search(r'model name\s*:\s*(.+)', Path('/proc/cpuinfo').read_text()) if sys.platform == 'linux' else None
    return f'{found[1] if found else "CPU"}, {torch.get_num_threads()} threads'
