"""A step of one run alone and of two runs at once, by how threads that wait for each other wait."""
import multiprocessing
import os
import statistics
import time
from unittest.mock import patch

from helper.compile import keep_memory
from helper.device import select_device
from helper.loops import train_epoch

from .common import Ready, build
from .loader import loaders

SETTINGS = {'as OpenMP is': {'GOMP_SPINCOUNT': '300000'}, 'as the scripts set it': {'GOMP_SPINCOUNT': '2000'},
            'asleep at once': {'OMP_WAIT_POLICY': 'PASSIVE'}, 'one thread': {'OMP_NUM_THREADS': '1'}}
NAMES = {name for setting in SETTINGS.values() for name in setting}


def step(barrier, connection, pair, opt):
    """The process of a run: after all are ready it steps until opt.steps are made, and sends the median in ms."""
    device = select_device('cpu')
    keep_memory()
    batch = next(iter(loaders(opt, device)[0]))
    distiller, optimizer, options = build(pair.split(','), opt, device, True, opt.compile)

    def once():
        start = time.perf_counter()
        train_epoch(1, Ready(batch, 1), distiller, optimizer, options)
        return 1000 * (time.perf_counter() - start)
    once()
    barrier.wait()
    connection.send(statistics.median(once() for _ in range(opt.steps)))


def together(count, setting, pair, opt):
    """The mean over `count` processes at once of their medians, ms."""
    context = multiprocessing.get_context('spawn')
    barrier, ends, processes = context.Barrier(count), [], []
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    with patch.dict(os.environ, {**kept, **setting}, clear=True):       # OpenMP reads them when a process starts
        for _ in range(count):
            end, other = context.Pipe()
            ends.append(end)
            processes.append(context.Process(target=step, args=(barrier, other, pair, opt)))
            processes[-1].start()
    found = [end.recv() for end in ends]
    for process in processes:
        process.join()
    return statistics.mean(found)


def measure(opt, device):
    """A row for each setting of each pair: medians of rounds by turns."""
    rows = []
    for pair in opt.pair or ('resnet110,resnet20,kd',):
        found = {name: ([], []) for name in SETTINGS}
        for _ in range(opt.rounds):
            for name, setting in SETTINGS.items():
                for count in (1, 2):
                    found[name][count - 1].append(together(count, setting, pair, opt))
        rows += [{'pair': pair, 'threads that wait': name, 'alone, ms a step': statistics.median(alone),
                  'two at once, ms a step': statistics.median(two)} for name, (alone, two) in found.items()]
    return rows
