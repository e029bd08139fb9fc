"""Where a run computes, and its random numbers."""
import random

import numpy as np
import torch

from .errors import UserError


def select_device(gpu_id: str, quiet: bool = False) -> torch.device:
    """The device of --gpu_id: 'cpu', or a GPU's number; a machine without CUDA falls back to the CPU with one line."""
    if gpu_id == 'cpu':
        return torch.device('cpu')
    words = gpu_id.split(',')
    if len(words) > 1 and set(words) == {'cpu'}:
        raise UserError(f'--gpu_id {gpu_id}: one process trains on one device; add --multiprocessing-distributed')
    try:
        ids = [int(word) for word in words]
    except ValueError:
        ids = [-1]
    if min(ids) < 0:
        raise UserError(f'--gpu_id {gpu_id}: give a GPU\'s number, as 0, or cpu')
    if not torch.cuda.is_available():
        if not quiet:
            print('no CUDA device here: training on the CPU')
        return torch.device('cpu')
    count = torch.cuda.device_count()
    if max(ids) >= count:
        raise UserError(f'--gpu_id {gpu_id}: this machine has GPU {", ".join(map(str, range(count)))}')
    if quiet:
        return torch.device('cuda', ids[0])
    if len(ids) > 1:
        print(f'--gpu_id {gpu_id}: one process trains on one GPU, {ids[0]}; --multiprocessing-distributed starts one '
              f'for each')
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


def random_state() -> dict:
    """The state of Python's, NumPy's and torch's random numbers, as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()
    return {'python': random.getstate(), 'numpy': [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
            'torch': torch.get_rng_state(),
            'cuda': torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None}


def restore_random_state(state: dict) -> None:
    """Put back what random_state gave. A damaged state raises what the generators raise."""
    version, keys, gauss = state['python']
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if state['cuda'] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state['cuda'])
