"""The `fast` recipe on the CPU with one thread, one process of all threads, and two processes of half of them."""
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


def train(opt, device):
    """In each process: measure the rounds; process 0 writes the images/s of all."""
    torch.set_num_threads(opt.threads)
    local = distributed.per_process_options(opt)
    local.gpu_id = 'cpu'
    recipe = Recipe(True, opt.pair[0], local)
    recipe.distiller = distributed.wrap(recipe.distiller, device)
    times = [recipe.round() for _ in range(opt.rounds + 1)][1:]
    if distributed.is_main():
        Path(opt.out).write_text(json.dumps(opt.steps * opt.batch_size / statistics.median(times)))


def measure(opt, device):
    """A row for each number of processes and threads, always with the whole batch."""
    threads = max(2, torch.get_num_threads())
    opt.pair, opt.num_workers = (opt.pair or PAIRS)[:1], 0
    return [measure_one(opt, *numbers) for numbers in ((1, 1), (1, threads), (2, threads // 2))]


def measure_one(opt, processes, threads_each):
    """A row: so many processes, of so many threads each."""
    with tempfile.TemporaryDirectory() as folder:
        options = SimpleNamespace(**{
            **vars(opt), 'flags': Flags({}, set()), 'threads': threads_each, 'out': f'{folder}/out',
            'gpu_id': ','.join(['cpu'] * processes), 'multiprocessing_distributed': True,
            'dist_url': 'tcp://127.0.0.1:23999', 'dist_timeout': 60})
        launch(train, options)
        return {'pair': opt.pair[0], 'processes': processes, 'threads each': threads_each,
                'images/s': json.loads(Path(options.out).read_text())}
