"""Whole training, loader included, by two recipes in turn, each in a process of its own.

`reference`: float32, eager, NCHW, an image at a time through torchvision's transforms in worker processes, the teacher
as it was trained, the loss and the accuracy read back every step. `fast`: as train_student.py trains, with --compile
and --amp if given.
"""
import multiprocessing
import re
import statistics
import sys
from collections import deque
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from cpu_kernels.fuse import Rewritten
from distiller_zoo import SOFT_LABELS
from helper.device import Precision, select_device
from helper.errors import UserError
from helper.loops import NullRun, train_epoch

from . import common
from .common import PAIRS, RepeatedBatch, alternate, build, memory_loader, new_process, peak_memory, seconds
from .loader import reference_loader


class ReadEveryStep(NullRun):
    """Reads the averages after each step, which waits for the device."""

    def begin_steps(self, meter, finite):
        self.meter = meter
        return 0

    def end_step(self, batches=1):
        self.meter.averages()


class Recipe:
    """One side of the comparison, in its process. pair: 'TEACHER,STUDENT,METHOD'."""

    def __init__(self, fast, pair, opt):
        self.fast, self.pair, self.opt = fast, pair, opt
        self.device = select_device(opt.gpu_id, only_check=True)
        self.precision = Precision(opt.amp if fast else None, self.device)
        if fast and opt.fast:
            torch.set_float32_matmul_precision('high')
        self.loader = (memory_loader if fast else reference_loader)(opt, self.device)
        self.distiller, self.optimizer, self.options = self.build(pair)
        self.run = None if fast else ReadEveryStep()

    def build(self, pair):
        return build(pair, self.opt, self.device, self.fast, self.fast and self.opt.compile)

    def round(self):
        """Seconds of opt.steps training steps."""
        return seconds(lambda: train_epoch(1, self.loader, self.distiller, self.optimizer, self.options, self.run,
                                           self.precision), self.device)

    def reset_peak(self):
        """Forget the peak of memory so far, as of compiling."""
        common.reset_peak_memory(self.device)

    def peak(self):
        """MiB: (peak_memory, memory that only the loader's workers hold or None)."""
        if sys.platform != 'linux' or self.device.type == 'cuda':
            return peak_memory(self.device), 0.0 if self.device.type == 'cuda' else None
        workers = [Path(f'/proc/{worker.pid}/smaps_rollup').read_text() for worker in multiprocessing.active_children()]
        private = sum(int(kib) for text in workers for kib in re.findall(r'^Private_\w+:\s+(\d+)', text, re.M))
        return peak_memory(self.device), private / 1024

    def time(self, run, rounds):
        """Median seconds of run(), after one call to warm up."""
        return alternate({'': run}, rounds, self.device)['']

    def parts(self):
        """Seconds a step of each part on its own, and the share of the matrix-product ceiling that a step reaches."""
        images, target, index = batch = next(iter(self.loader))
        if not self.fast:
            images = batch[0] = images.contiguous()
        repeated, rounds = RepeatedBatch(batch, self.opt.steps), self.opt.rounds

        def step(distiller, optimizer):
            return self.time(lambda: train_epoch(1, repeated, distiller, optimizer, self.options, self.run,
                                                 self.precision), rounds) / len(repeated)
        teacher_name, student_name, method = self.pair.split(',')
        whole = soft_labels = step(self.distiller, self.optimizer)
        if method != SOFT_LABELS:
            soft_labels = step(*self.build(f'{teacher_name},{student_name},{SOFT_LABELS}')[:2])
        teacher_outputs, rewritten = self.distiller.teacher_outputs, Rewritten()
        if self.fast and self.opt.compile and self.device.type == 'cpu':
            rewritten = Rewritten(self.distiller.teacher)
        elif self.fast and self.opt.compile:
            teacher_outputs = torch.compile(teacher_outputs, dynamic=False)

        def run_teacher():
            with self.precision.autocast(), rewritten.in_use():
                teacher_outputs(images)
        loader = self.time(lambda: deque(self.loader, 0), rounds) / len(self.loader)
        teacher, optimizer = self.time(run_teacher, 4 * rounds), self.time(self.optimizer.step, 4 * rounds)
        parts = {'loader': loader, 'teacher': teacher, 'student': max(0.0, soft_labels - teacher - optimizer),
                 'method': max(0.0, whole - soft_labels), 'optimiser': optimizer}
        return parts, self.multiply_adds(images, target, index) / whole / self.ceiling()

    def multiply_adds(self, images, target, index):
        """The multiply-adds of one step, forward and backward, as torch counts them."""
        distiller, _, _ = build(self.pair, self.opt, self.device)
        with FlopCounterMode(display=False) as counter:
            distiller.train()(images, target, index)[0]['loss'].backward()
        return counter.get_total_flops() / 2

    def ceiling(self):
        """The multiply-adds a second of a large square matrix product in this recipe's type."""
        n = 8192 if self.device.type == 'cuda' else 1536
        a = torch.randn(n, n, device=self.device, dtype=self.precision.dtype or torch.float32)
        return n**3 / self.time(lambda: a @ a, 5)


def start(*arguments):
    """Build the recipe of this process."""
    global _recipe
    _recipe = Recipe(*arguments)


def call(method):
    """Call a method of the recipe of this process."""
    return getattr(_recipe, method)()


def measure_pair(pair, opt, processes):
    """Yield a row for each recipe of a pair. processes: name of the recipe -> the executor of its process."""
    def ask(name, function, *arguments):
        try:
            return processes[name].submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError(f'--pair {pair}: the process of {name} has ended; its message is above') from None
    for name in processes:
        ask(name, start, name == 'fast', pair, opt)
    for method in ('round', 'reset_peak'):      # one round to warm up, which compiles
        for name in processes:
            ask(name, call, method)
    rounds = [{name: opt.steps * opt.batch_size / ask(name, call, 'round') for name in processes}
              for _ in range(opt.rounds)]
    median = {name: statistics.median(speeds[name] for speeds in rounds) for name in processes}
    for name, speed in median.items():
        row = {'pair': pair, 'recipe': name, 'images/s': speed, 'ratio': speed / median['reference'],
               'all rounds': [speeds[name] for speeds in rounds]}
        row['peak MiB'], row['workers MiB'] = ask(name, call, 'peak')
        if not opt.brief:
            row['seconds a step'], row['of ceiling'] = ask(name, call, 'parts')
        print(f'{pair}, {name}: {speed:.0f} images/s', file=sys.stderr, flush=True)
        yield row


def measure(opt, device):
    """A row for each recipe of each pair: medians of rounds that alternate between the two processes."""
    for pair in opt.pair or PAIRS:
        with new_process() as reference, new_process() as fast:
            yield from measure_pair(pair, opt, {'reference': reference, 'fast': fast})


def show(rows):
    """Print the rows as a table, the parts as percentages of their sum."""
    table_rows = []
    for row in rows:
        parts = row.get('seconds a step', {})
        cells = {key: value for key, value in row.items() if key != 'of ceiling'}
        cells |= {f'{name} %': 100 * s / sum(parts.values()) for name, s in parts.items()}
        table_rows.append({**cells, 'of ceiling %': 100 * row['of ceiling']} if parts else cells)
    common.show(table_rows)
