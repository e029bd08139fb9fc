"""Whole training, loader included, by two recipes in turn, each in a process of its own.

`reference`: float32, eager, NCHW, an image at a time through torchvision's transforms in worker processes, the teacher
as it was trained, a loss and an accuracy read back every step. `fast`: what train_student.py does, and with --compile
and --amp what these flags do.
"""
import csv
import multiprocessing
import re
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from cpu_kernels.fuse import Rewritten
from distiller_zoo import SOFT_LABELS
from helper.cli import table
from helper.compile import allow_tf32, keep_memory
from helper.device import Precision, select_device
from helper.errors import UserError
from helper.loops import NullRun, train_epoch

from .common import Ready, begin_peak, build, exhaust, peak_memory, timed, wait
from .loader import loaders

PAIRS = Path(__file__).resolve().parents[1] / 'analysis' / 'benchmark_pairs.csv'


def standard_pairs() -> list[str]:
    """The pairs that are measured where no --pair is given: 'TEACHER,STUDENT,METHOD'."""
    with open(PAIRS, newline='') as file:
        return [f'{row["teacher"]},{row["student"]},{row["method"]}' for row in csv.DictReader(file)]


class ReadEveryStep(NullRun):
    """Reads the averages after each step, which waits for the device."""

    def begin_steps(self, meter, finite):
        self.meter = meter
        return 0

    def end_step(self, batches=1):
        self.meter.averages()


class Recipe:
    """One side of the comparison, in its process."""

    def __init__(self, fast, pair, opt):
        self.fast, self.pair, self.opt = fast, pair, opt
        self.device = select_device(opt.gpu_id, quiet=True)
        self.precision = Precision(opt.amp if fast else None, self.device)
        if fast:
            keep_memory()
        if fast and opt.fast:
            allow_tf32()
        self.loader = loaders(opt, self.device)[not fast]
        self.distiller, self.optimizer, self.options = self.build(pair)
        self.hook = None if fast else ReadEveryStep()

    def build(self, pair):
        return build(pair, self.opt, self.device, self.fast, self.fast and self.opt.compile)

    def round(self):
        """Seconds of opt.steps training steps."""
        wait(self.device)
        start = time.perf_counter()
        train_epoch(1, self.loader, self.distiller, self.optimizer, self.options, self.hook, self.precision)
        wait(self.device)
        return time.perf_counter() - start

    def begin_peak(self):
        """Forget the peak of memory so far, as of compiling."""
        begin_peak(self.device)

    def peak(self):
        """MiB: (as peak_memory; what the loader's workers hold beside it)."""
        if sys.platform != 'linux' or self.device.type == 'cuda':
            return peak_memory(self.device), 0.0 if self.device.type == 'cuda' else None
        workers = [Path(f'/proc/{worker.pid}/smaps_rollup').read_text() for worker in multiprocessing.active_children()]
        own = sum(int(kib) for text in workers for kib in re.findall(r'^Private_\w+:\s+(\d+)', text, re.M))
        return peak_memory(self.device), own / 1024

    def parts(self):
        """Seconds a step of each part on its own, and the share of the matrix-product ceiling that a step reaches."""
        images, target, index = batch = next(iter(self.loader))
        if not self.fast:
            images = batch[0] = images.contiguous()
        ready, rounds = Ready(batch, self.opt.steps), self.opt.rounds

        def step(distiller, optimizer):
            return timed(lambda: train_epoch(1, ready, distiller, optimizer, self.options, self.hook,
                                               self.precision), self.device, rounds) / len(ready)
        whole = step(self.distiller, self.optimizer)
        soft, soft_optimizer, _ = self.build((*self.pair[:2], SOFT_LABELS))
        plain = step(soft, soft_optimizer) if self.pair[2] != SOFT_LABELS else whole

        teacher, rewritten = self.distiller.teacher_outputs, Rewritten()
        if self.fast and self.opt.compile and self.device.type == 'cpu':
            rewritten = Rewritten(self.distiller.teacher)
        elif self.fast and self.opt.compile:
            teacher = torch.compile(teacher, dynamic=False)

        def ask():
            with self.precision.autocast(), rewritten.in_use():
                teacher(images)
        seconds = {'loader': timed(lambda: exhaust(self.loader), self.device, rounds) / len(self.loader),
                   'teacher': timed(ask, self.device, 4 * rounds),
                   'optimiser': timed(self.optimizer.step, self.device, 4 * rounds)}
        seconds['student'] = max(0.0, plain - seconds['teacher'] - seconds['optimiser'])
        seconds['method'] = max(0.0, whole - plain)
        macs = self.macs(images, target, index)
        return seconds, macs / whole / self.ceiling()

    def macs(self, images, target, index):
        """Multiply-adds of one step, forward and backward, as torch counts them."""
        distiller, _, _ = build(self.pair, self.opt, self.device)
        with FlopCounterMode(display=False) as counter:
            distiller.train()(images, target, index)[0]['loss'].backward()
        return counter.get_total_flops() / 2

    def ceiling(self):
        """Multiply-adds a second of a large square matrix product in this recipe's type."""
        n = 8192 if self.device.type == 'cuda' else 1536
        a = torch.randn(n, n, device=self.device, dtype=self.precision.dtype or torch.float32)
        return n**3 / timed(lambda: a @ a, self.device, 5)


def serve(connection, fast, pair, opt):
    """The process of a recipe: does what it is told."""
    recipe = Recipe(fast, pair, opt)
    while True:
        name = connection.recv()
        if name is None:
            return
        connection.send(getattr(recipe, name)())


def measure(opt, device):
    """A row for each recipe of each pair: medians of rounds that alternate between the two processes."""
    rows, context = [], multiprocessing.get_context('spawn')
    for pair in opt.pair or standard_pairs():
        ends, processes = {}, []
        for name in ('reference', 'fast'):
            ends[name], other = context.Pipe()
            processes.append(context.Process(target=serve, args=(other, name == 'fast', pair.split(','), opt)))
            processes[-1].start()
            other.close()

        def ask(name, what, ends=ends, pair=pair):
            ends[name].send(what)
            try:
                return ends[name].recv()
            except EOFError:
                raise UserError(f'--pair {pair}: the process of {name} has ended; its message is above') from None
        for what in ('round', 'begin_peak'):        # one to warm up, which compiles
            for name in ends:
                ask(name, what)
        seconds = {name: [] for name in ends}
        for _ in range(opt.rounds):
            for name in ends:
                seconds[name].append(ask(name, 'round'))
        images = opt.steps * opt.batch_size
        for name in ends:
            row = {'pair': pair, 'recipe': name, 'images/s': images / statistics.median(seconds[name]),
                   'all rounds': [images / s for s in seconds[name]]}
            row['peak MiB'], row['workers MiB'] = ask(name, 'peak')
            row['ratio'] = row['images/s'] / (rows[-1]['images/s'] if name == 'fast' else row['images/s'])
            if not opt.brief:
                row['seconds a step'], row['of ceiling'] = ask(name, 'parts')
            rows.append(row)
            print(f'{pair}, {name}: {row["images/s"]:.0f} images/s', file=sys.stderr, flush=True)
        for end, process in zip(ends.values(), processes, strict=True):
            end.send(None)
            process.join()
    return rows


def show(rows):
    """The rows as a table; the parts as percentages of their sum."""
    names = ('loader', 'teacher', 'student', 'method', 'optimiser')
    cells = []
    for row in rows:
        parts = row.get('seconds a step')
        whole = parts and sum(parts.values())
        shares = [parts[name] / whole for name in names] + [row['of ceiling']] if parts else []
        memory = ['-' if row[name] is None else f'{row[name]:.0f}' for name in ('peak MiB', 'workers MiB')]
        cells.append((row['pair'], row['recipe'], f'{row["images/s"]:.0f}', f'{row["ratio"]:.2f}', *memory,
                      *(f'{100 * share:.0f}' for share in shares)))
    heads = ('pair', 'recipe', 'images/s', 'ratio', 'peak MiB', 'workers MiB')
    if len(cells[0]) > len(heads):
        heads += tuple(f'{name} %' for name in names) + ('of ceiling %',)
    print(table(heads, cells, '<<' + '>' * (len(heads) - 2)))
