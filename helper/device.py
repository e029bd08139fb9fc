"""Where a run computes, and its random numbers."""
import random

import numpy as np
import torch

from .errors import UserError


def select_device(gpu_id: str) -> torch.device:
    """The device of --gpu_id: 'cpu', or a GPU's number; a machine without CUDA falls back to the CPU with one line."""
    if gpu_id == 'cpu':
        return torch.device('cpu')
    try:
        ids = [int(word) for word in gpu_id.split(',')]
    except ValueError:
        ids = [-1]
    if min(ids) < 0:
        raise UserError(f'--gpu_id {gpu_id}: give a GPU\'s number, as 0, or cpu')
    if not torch.cuda.is_available():
        print('no CUDA device here: training on the CPU')
        return torch.device('cpu')
    count = torch.cuda.device_count()
    if max(ids) >= count:
        raise UserError(f'--gpu_id {gpu_id}: this machine has GPU {", ".join(map(str, range(count)))}')
    if len(ids) > 1:
        print(f'--gpu_id {gpu_id}: one process trains on one GPU, {ids[0]}')
    torch.cuda.set_device(ids[0])
    return torch.device('cuda', ids[0])


def memory_format(opt) -> torch.memory_format:
    """How --channels_last wants the weights to lie; activations follow them."""
    return torch.channels_last if opt.channels_last else torch.contiguous_format


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch; `deterministic` also makes cuDNN choose the same algorithms every time."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
