"""A step of one run alone and of two runs at once, by how threads that wait for each other wait."""
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from unittest.mock import patch

import torch

from helper.loops import train_epoch

from .common import RepeatedBatch, build, memory_loader, seconds

SETTINGS = {'as OpenMP is': {'GOMP_SPINCOUNT': '300000'}, 'as the scripts set it': {'GOMP_SPINCOUNT': '2000'},
            'asleep at once': {'OMP_WAIT_POLICY': 'PASSIVE'}, 'one thread': {'OMP_NUM_THREADS': '1'}}
VARIABLES = {name for setting in SETTINGS.values() for name in setting}


def use_barrier(barrier):
    """Keep the barrier of a new process, which can only be passed on when the process starts."""
    global _barrier
    _barrier = barrier


def step_time(pair, opt):
    """The median ms of opt.steps steps, which begin when all runs are ready."""
    device = torch.device('cpu')
    loader = RepeatedBatch(next(iter(memory_loader(opt, device))), 1)
    task = build(pair, opt, device, compiled=opt.compile)

    def step():
        return 1000 * seconds(lambda: train_epoch(1, loader, *task), device)
    step()
    _barrier.wait()
    return statistics.median(step() for _ in range(opt.steps))


def step_time_of_runs(count, setting, pair, opt):
    """The mean of step_time over `count` processes at once, in ms."""
    context = multiprocessing.get_context('spawn')
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    # OpenMP reads the variables when a process starts.
    with patch.dict(os.environ, {**environment, **setting}, clear=True), \
            ProcessPoolExecutor(count, context, use_barrier, (context.Barrier(count),)) as runs:
        return statistics.mean(runs.map(step_time, [pair] * count, [opt] * count))


def measure(opt, device):
    """A row for each setting of each pair: medians of rounds in turn."""
    for pair in opt.pair or ('resnet110,resnet20,kd',):
        times = {(name, count): [] for name in SETTINGS for count in (1, 2)}
        for _ in range(opt.rounds):
            for name, count in times:
                times[name, count].append(step_time_of_runs(count, SETTINGS[name], pair, opt))
        for name in SETTINGS:
            yield {'pair': pair, 'threads that wait': name, 'alone, ms a step': statistics.median(times[name, 1]),
                   'two at once, ms a step': statistics.median(times[name, 2])}
