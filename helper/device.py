"""The device of a run, its precision and its random numbers."""
import contextlib
import os
import platform
import random
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

from . import cluster
from .errors import UserError

MPS = 'mps'     # Metal Performance Shaders, PyTorch's name of Apple's GPUs
KINDS = {'bfloat16': torch.bfloat16, 'float16': torch.float16}     # the values of --amp


def select_device(gpu_id: str, only_check: bool = False) -> torch.device:
    """The device of --gpu_id: 'cpu', 'mps' (the GPU of a Mac) or the number of a GPU; without CUDA the CPU."""
    if gpu_id == 'cpu':
        return torch.device('cpu')
    entries = gpu_id.split(',')
    if MPS in entries:
        if len(entries) > 1:
            raise UserError(f'--gpu_id {gpu_id}: the GPU of a Mac trains in a single process; give --gpu_id mps')
        if not torch.backends.mps.is_available():
            raise UserError('--gpu_id mps: PyTorch finds no GPU of Apple on this machine; give the number of a GPU, as '
                            '0, or cpu')
        return torch.device(MPS)
    if len(entries) > 1 and set(entries) == {'cpu'}:
        raise UserError(f'--gpu_id {gpu_id}: one process trains on one device; add --multiprocessing-distributed')
    try:
        ids = [int(entry) for entry in entries]
    except ValueError:
        ids = [-1]
    if min(ids) < 0:
        raise UserError(f'--gpu_id {gpu_id}: give the number of a GPU, as 0, mps or cpu')
    if not torch.cuda.is_available():
        if not only_check:
            print('no CUDA device here: training on the CPU')
        return torch.device('cpu')
    count = torch.cuda.device_count()
    if max(ids) >= count:
        raise UserError(f'--gpu_id {gpu_id}: this machine has GPU {", ".join(map(str, range(count)))}')
    if only_check:
        return torch.device('cuda', ids[0])
    if len(ids) > 1:
        print(f'--gpu_id {gpu_id}: one process trains on one GPU, {ids[0]}; --multiprocessing-distributed starts one '
              f'for each')
    torch.cuda.set_device(ids[0])
    return torch.device('cuda', ids[0])


def cores() -> int:
    """The number of processor cores of a run. Under torchrun, and srun --cpus-per-task: of all its machines."""
    if per_task := cluster.cores_per_task():
        return per_task * cluster.read_count('SLURM_STEP_NUM_TASKS')
    here = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return here * cluster.machine_count()


def cpu_name() -> str:
    """The model of the processor, as Linux reports it."""
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def most_precise_float(device: torch.device) -> torch.dtype:
    """The most precise floating-point type of a device; Apple's GPUs have no float64."""
    return torch.float32 if device.type == MPS else torch.float64


def memory_format(opt) -> torch.memory_format:
    """The memory layout of the weights for --channels_last; activations follow them."""
    return torch.channels_last if opt.channels_last else torch.contiguous_format


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch; `deterministic` also makes cuDNN select the same algorithms in every run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def free_memory(device: torch.device) -> int:
    """The free bytes of a GPU, or of this machine; practically infinite if the system does not report them."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith('MemAvailable'))
    except (OSError, StopIteration, ValueError):
        return 1 << 62


def environment() -> dict:
    """The machine, the versions and the command line of this process, for parameters.json."""
    machine = torch.cuda.get_device_name() if torch.cuda.is_initialized() else \
        f'{cpu_name()} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores, threads of the run: ' \
        f'{torch.get_num_threads()}'
    return {'machine': machine, 'versions': f'Python {platform.python_version()}, torch {torch.__version__}',
            'command': shlex.join(['python', *sys.argv])}


def random_state() -> dict:
    """The state of the random number generators of Python, NumPy and torch, as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()
    return {'python': random.getstate(), 'numpy': [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
            'torch': torch.get_rng_state(),
            'cuda': torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
            **({MPS: torch.mps.get_rng_state()} if torch.backends.mps.is_available() else {})}


def restore_random_state(state: dict) -> None:
    """Restore the result of random_state. The generators raise various errors for a damaged one."""
    version, keys, gauss = state['python']
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if state['cuda'] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state['cuda'])
    if MPS in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state[MPS])


class Precision:
    """Autocast for the forward pass, and for float16 a scaler that keeps small gradients from vanishing."""

    smallest_scale = 2.0 ** -14

    def __init__(self, kind: str | None, device: torch.device):
        """kind: the value of --amp: None, 'auto', 'bfloat16' or 'float16'. auto is bfloat16 if the GPU supports it."""
        self.device = device
        if kind == 'auto' and device.type in ('cpu', MPS):
            why = 'are slower on most CPUs' if device.type == 'cpu' else 'have not been tried on a GPU of Apple'
            print(f'--amp: 16 bits {why}: computing in float32; --amp bfloat16 enables them anyway')
            kind = None
        elif kind == 'float16' and device.type == MPS:
            raise UserError('--amp float16: not on a GPU of Apple; give --amp bfloat16, or leave it out')
        elif kind == 'auto':
            kind = 'bfloat16' if torch.cuda.is_bf16_supported(including_emulation=False) else 'float16'
        self.dtype = KINDS.get(kind)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self):
        """A context for the forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def check(self) -> None:
        """Raise UserError if the gradients overflow at any scale: then the run has diverged."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < self.smallest_scale:
            raise UserError(f'--amp float16: the gradients are not finite at any scale (now {self.scaler.get_scale():g}'
                            f'): the run diverged; lower --learning_rate or --beta')
