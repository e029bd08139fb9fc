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

from .recipes import Recipe, standard_pairs


def scaling_round(opt, device):
    """In each process: the medians of its rounds, written by the first."""
    torch.set_num_threads(opt.threads)
    part = distributed.per_process_options(opt)
    part.gpu_id = 'cpu'
    recipe = Recipe(True, opt.pair[0].split(','), part)
    recipe.distiller = distributed.wrap(recipe.distiller, device)
    took = [recipe.round() for _ in range(opt.rounds + 1)][1:]
    if distributed.is_main():
        Path(opt.out).write_text(json.dumps(opt.steps * opt.batch_size / statistics.median(took)))


def measure(opt, device):
    """images/s of the whole batch with one thread, one process of all threads, and two processes of half of them."""
    threads = max(2, torch.get_num_threads())
    opt.pair, opt.num_workers = (opt.pair or standard_pairs())[:1], 0
    return [measure_one(opt, *share) for share in ((1, 1), (1, threads), (2, threads // 2))]


def measure_one(opt, processes, each):
    """A row: so many processes, of so many threads each."""
    with tempfile.TemporaryDirectory() as folder:
        part = SimpleNamespace(**{
            **vars(opt), 'flags': Flags({}, set()), 'threads': each, 'out': f'{folder}/out',
            'gpu_id': ','.join(['cpu'] * processes), 'multiprocessing_distributed': True,
            'dist_url': 'tcp://127.0.0.1:23999', 'dist_timeout': 60})
        launch(scaling_round, part)
        return {'pair': opt.pair[0], 'processes': processes, 'threads each': each,
                'images/s': json.loads(Path(part.out).read_text())}
