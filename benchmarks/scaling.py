"""Processes on the CPU: one or two, with the same number of threads in all; --ddp: two, with options of DDP in turn."""
import json
import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

from helper import distributed
from helper.cli import Flags
from helper.launch import launch

from .common import PAIRS
from .recipes import Recipe

DDP_PAIRS = ('resnet20,resnet8,kd', 'resnet20,resnet8,semckd', 'resnet20,resnet8,crd')
AS_TRAINED = {'as trained': {}}
DDP = {**AS_TRAINED, 'as trained, again': {},       # shows the noise
       'static_graph': {'static_graph': True}, 'no bucket view': {'gradient_as_bucket_view': False}}


def add_arguments(add):
    add('--ddp', action='store_true', help='compare options of DDP in two processes of one thread each')


def train(opt, device):
    """In each process: measure the sides in turn, each round from another one; process 0 writes the seconds."""
    torch.set_num_threads(opt.threads)
    local = distributed.per_process_options(opt)
    local.gpu_id = 'cpu'
    sides = [Recipe(True, opt.pair, local) for _ in opt.sides]
    for side, options in zip(sides, opt.sides.values(), strict=True):
        side.distiller = distributed.wrap(side.distiller, device, **options)
    seconds = [[] for _ in sides]
    for start in range(opt.rounds + 1):
        for number in range(start, start + len(sides)):
            seconds[number % len(sides)].append(sides[number % len(sides)].round())
    if distributed.is_main():
        Path(opt.out).write_text(json.dumps([times[1:] for times in seconds]))      # the first round warms up


def measure(opt, device):
    """Yield a row for each number of processes and threads, or for each option of DDP, always with the whole batch."""
    opt.num_workers = 0
    if opt.ddp:
        for pair in opt.pair or DDP_PAIRS:
            yield from measure_ddp(opt, pair)
        return
    threads = max(2, torch.get_num_threads())
    for numbers in ((1, 1), (1, threads), (2, threads // 2)):
        yield measure_one(opt, (opt.pair or PAIRS)[0], *numbers)


def measure_one(opt, pair, processes, threads_each):
    """A row: so many processes, of so many threads each."""
    seconds, = seconds_of(opt, pair, processes, threads_each, AS_TRAINED).values()
    return {'pair': pair, 'processes': processes, 'threads each': threads_each,
            'images/s': opt.steps * opt.batch_size / statistics.median(seconds)}


def measure_ddp(opt, pair):
    """Yield a row for each side: its median speed, and the quartiles of its speed divided by the first side's."""
    by_side = seconds_of(opt, pair, 2, 1, DDP)
    for name, seconds in by_side.items():
        ratios = [first / s for first, s in zip(by_side['as trained'], seconds, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method='inclusive') if len(ratios) > 1 else 3 * ratios
        yield {'pair': pair, 'DDP': name, 'images/s': opt.steps * opt.batch_size / statistics.median(seconds),
               'ratio': median, 'lower quartile': low, 'upper quartile': high}


def seconds_of(opt, pair, processes, threads_each, sides) -> dict:
    """name of a side -> the seconds of each round."""
    with tempfile.TemporaryDirectory() as folder:
        options = SimpleNamespace(**{
            **vars(opt), 'flags': Flags({}, set()), 'pair': pair, 'threads': threads_each, 'sides': sides,
            'out': f'{folder}/out', 'gpu_id': ','.join(['cpu'] * processes), 'multiprocessing_distributed': True,
            'dist_url': 'tcp://127.0.0.1:23999', 'dist_timeout': 60})
        launch(train, options)
        return dict(zip(sides, json.loads(Path(options.out).read_text()), strict=True))
