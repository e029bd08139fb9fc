"""What the processes that train one model do together; in a single process each function does the plain thing."""
import contextlib
import copy
import inspect
import os
import random
import re
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .cli import values
from .device import MPS, select_device
from .errors import UserError

_control = None         # the gloo group in which CPU values are exchanged


def rank() -> int:
    """Number of this process, 0 .. world_size - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def join(opt, url: str, rank: int, world: int, gpu_id: str) -> torch.device:
    """Meet the other processes at `url` ('env://': MASTER_ADDR and MASTER_PORT) and return this one's device.

    Only process 0 prints from here on. Raises UserError if they do not meet within --dist-timeout.
    """
    global _control
    if rank:        # only process 0 prints
        sys.stdout = open(os.devnull, 'w')      # noqa: SIM115
    if 'OMP_NUM_THREADS' not in os.environ:     # each process gets its part of the cores
        text = os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_NTASKS_PER_NODE') or ''
        here = max(1, int(text)) if text.isdecimal() else world
        torch.set_num_threads(max(1, torch.get_num_threads() // here))
    device = select_device(gpu_id)
    if device.type == MPS:
        raise UserError('--gpu_id mps: the GPU of a Mac trains in a single process; start one, or give cpu')
    began = time.monotonic()
    try:
        with _without_cpp_messages():
            dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', init_method=url, rank=rank,
                                    world_size=world, timeout=timedelta(seconds=opt.dist_timeout),
                                    device_id=device if device.type == 'cuda' else None)
            _control = dist.group.WORLD if device.type == 'cpu' else dist.new_group(
                backend='gloo', timeout=timedelta(seconds=opt.dist_timeout))
    except (dist.DistError, RuntimeError, OSError, ValueError) as error:
        where = f'MASTER_ADDR and MASTER_PORT {os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}' \
            if url == 'env://' else f'--dist-url {url}'
        raise UserError(f'{where}: {_why_not_met(str(error), world, time.monotonic() - began, opt.dist_timeout)}'
                        ) from error
    return device


def _why_not_met(error: str, world: int, seconds: float, timeout: int) -> str:
    """Why the processes could not connect within `seconds`, and what to do about it. error: the text of torch's."""
    reason = ' '.join(error.split())
    if re.search('EADDRINUSE|address already in use', reason):
        return 'the port is in use; give another one'
    is_late = seconds > 0.9 * timeout
    when = f'within {timeout} s' if is_late else f'and gave up after {seconds:.0f} s'
    if match := re.search(r'remote=\[?([^\],\s]+)', reason):       # process 0 was found, and another one was not
        text = f'the {world} processes did not meet {when}: one of them cannot be reached at {match[1]}'
        if match[1].startswith(('127.', '::1', '::ffff:127.')):
            text += ', which every machine has for itself; its host name stands for that address in /etc/hosts'
        return f'{text}; set GLOO_SOCKET_IFNAME, and NCCL_SOCKET_IFNAME for GPUs, to the network interface that the ' \
               f'machines share, as eth0 of `ip addr`, for all processes'
    return f'the {world} processes did not meet {when} ({reason[:150]}); is the address that of process 0, open to ' \
           f'all, and does every process start?' + ' --dist-timeout SECONDS waits longer' * is_late


@contextlib.contextmanager
def _without_cpp_messages():
    """Discard what C++ writes to stderr: dozens of lines about a failure that an exception reports as well."""
    if '--debug' in sys.argv:
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def agree_on_options(opt) -> None:
    """Once the processes have met: process 0 decides what the user did not give (opt.flags.filled_in, as the seed).

    Raises UserError, the same in every process, where they were started with other options, code or torch.
    """
    given = {name: value for name, value in values(opt).items() if name not in opt.flags.filled_in}
    check_alike({**given, 'torch': torch.__version__, 'code (checksum)': code_checksum()},
                'start all of them with the same command, code and torch')
    vars(opt).update(broadcast(lambda: {name: getattr(opt, name) for name in opt.flags.filled_in}))


def check_alike(facts: dict, advice: str) -> None:
    """Raises UserError, the same in every process, unless all have the same `facts`, name -> value."""
    first, *others = gather({name: repr(value) for name, value in facts.items()})
    for number, other in enumerate(others, start=1):
        differ = [f'{name} {first.get(name)} and {other.get(name)}' for name in {**first, **other}
                  if first.get(name) != other.get(name)]
        if differ:
            raise UserError(f'process 0 and process {number} differ: {"; ".join(differ)}; {advice}')


def code_checksum() -> int:
    """A checksum of the source files that a run executes."""
    root, crc = Path(__file__).resolve().parents[1], 0
    for folder in ('.', 'dataset', 'distiller_zoo', 'distiller_zoo/criteria', 'helper', 'cpu_kernels', 'models'):
        for file in sorted([*(root / folder).glob('*.py'), *(root / folder).glob('*.cpp')]):
            crc = zlib.crc32(file.read_bytes(), crc)
    return crc


def per_process_options(opt):
    """A copy of the options with batch_size and num_workers of one process; on the command line they are totals.

    Raises UserError for a batch that cannot be divided.
    """
    world = world_size()
    check_batch_size(opt, world)
    local = copy.copy(opt)
    local.batch_size = opt.batch_size // world
    local.num_workers = -(-opt.num_workers // world)
    return local


def check_batch_size(opt, world: int) -> None:
    """Raises UserError unless `world` processes can divide --batch_size evenly."""
    if opt.batch_size < world:
        raise UserError(f'--batch_size {opt.batch_size}: fewer images than the {world} processes; give at least '
                        f'{world}')
    if opt.batch_size % world:
        raise UserError(f'--batch_size {opt.batch_size}: cannot be divided among {world} processes; '
                        f'give a multiple of {world}')


def wrap(module: nn.Module, device: torch.device, unused: bool = False) -> nn.Module:
    """`module` under DDP where there are several processes. unused: some of its parameters may get no gradient.

    DDP expects one backward pass a step: a module with `own_backward` stays as it is, and the loop averages its
    gradients with average_gradients.
    """
    if world_size() == 1 or module.own_backward:
        return module
    warnings.filterwarnings('ignore', message='Grad strides do not match')      # of 1x1 kernels, which have two names
    # DDP need not synchronise buffers: batch norms are averaged before they are used, and the others are equal.
    names = inspect.signature(DistributedDataParallel).parameters
    buffers = 'forward_sync_buffers' if 'forward_sync_buffers' in names else 'broadcast_buffers'    # until torch 2.14
    return DistributedDataParallel(module, device_ids=[device] if device.type == 'cuda' else None, **{buffers: False},
                                   find_unused_parameters=unused, gradient_as_bucket_view=True)


def gather(value) -> list:
    """The `value`s of all processes, anything that pickles, in order of rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value, group=_control)
    return values


def broadcast(make: Callable):
    """What make() returns in process 0, in every process; only process 0 calls it."""
    values = [make() if is_main() else None]
    if world_size() > 1:
        dist.broadcast_object_list(values, 0, group=_control)
    return values[0]


def mean(x: torch.Tensor) -> torch.Tensor:
    """The mean over the processes, without gradient."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world_size()


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Replace every gradient by its mean over the processes. All processes have gradients for the same parameters."""
    if world_size() == 1:
        return
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    if grads:
        flat = mean(torch.cat([grad.flatten() for grad in grads]))
        for grad, averaged in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(averaged.view_as(grad))


@torch.no_grad()
def average_batchnorm(module: nn.Module) -> None:
    """Give every process the mean of all running statistics: before they are used or saved."""
    if world_size() == 1:
        return
    stats = [getattr(m, name) for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
             for name in ('running_mean', 'running_var') if getattr(m, name) is not None]
    if stats:
        flat = mean(torch.cat([s.flatten() for s in stats]))
        for s, averaged in zip(stats, flat.split([s.numel() for s in stats]), strict=True):
            s.copy_(averaged.view_as(s))


class _SumOverRanks(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return _SumOverRanks.forward(ctx, grad)


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What torch's SyncBatchNorm, which is for GPUs alone, does: (N, C, ...) of one N in every process."""

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        world, dtype, x = dist.get_world_size(), x.dtype, x.float()
        mean = _SumOverRanks.apply(x.mean(dims)) / world
        var = _SumOverRanks.apply((x - mean.view(shape)).pow(2).mean(dims)) / world
        with torch.no_grad():
            n = world * x.numel() // x.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)
        x = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        return (x * self.weight.view(shape) + self.bias.view(shape)).to(dtype)


def synchronise_batchnorm(module: nn.Module) -> None:
    """--sync_bn: take the statistics of batch norms over all processes. Parameters and their names stay.

    torch has this for GPUs, and timm for its norms with an activation; on the CPU CpuSyncBatchNorm is used. A single
    process changes nothing. Raises UserError for norms that do more, where nothing keeps what they do.
    """
    if world_size() == 1:
        return
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    odd = {type(norm).__name__ for norm in norms} - {'BatchNorm1d', 'BatchNorm2d', 'BatchNorm3d'}
    on_cpu = next(module.parameters()).device.type == 'cpu'
    if odd - (set() if on_cpu else {'BatchNormAct2d'}):
        raise UserError(f'--sync_bn: not for nets with {", ".join(sorted(odd))}, batch norms that do more'
                        f'{" (BatchNormAct2d goes on GPUs)" if on_cpu else ""}; leave it out')
    if on_cpu:
        for norm in norms:
            norm.__class__ = CpuSyncBatchNorm
    elif odd:
        from timm.layers import convert_sync_batchnorm
        convert_sync_batchnorm(module)
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(module)


class Agreement:
    """The largest of a number that each process chooses, the same in all of them, known one call later.

    One call later, so that nobody waits for the network: the exchange runs during the next step.
    """

    def __init__(self):
        self.pending = None

    def largest(self, value: int) -> int:
        """The largest value of the previous call in any process; in a single process this `value` itself."""
        if world_size() == 1:
            return value
        before = self.settle()
        tensor = torch.tensor(value)
        self.pending = tensor, dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_control, async_op=True)
        return before

    def settle(self) -> int:
        """The result of the previous call's exchange."""
        if self.pending is None:
            return 0
        tensor, work = self.pending
        work.wait()
        self.pending = None
        return int(tensor)


def where(device: torch.device) -> str:
    """The device, in words for the terminal."""
    return f'{world_size()} processes, {device.type}' if world_size() > 1 else str(device)


def seed_this_process(seed: int) -> None:
    """Once the module is built, alike in all processes: from here on each draws random numbers of its own."""
    if rank():
        torch.manual_seed(seed + rank())
        random.seed(seed + rank())
        np.random.seed((seed + rank()) % 2**32)
