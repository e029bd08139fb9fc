"""Communication between the processes that train one model; a single process needs none, and works the same way."""
import contextlib
import copy
import inspect
import os
import sys
import time
import uuid
import warnings
import zlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import cluster
from .cli import values
from .device import MPS, seed_everything, select_device
from .errors import UserError

_cpu_group = None       # the gloo group that exchanges values on the CPU


def rank() -> int:
    """Number of this process, 0 .. world_size - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def join(opt, url: str, rank: int, world: int, gpu_id: str) -> tuple[torch.device, dist.Store]:
    """Meet the others at `url`; return the device of this process and the store of all. Only process 0 prints then.

    url 'env://': MASTER_ADDR and MASTER_PORT. Raises UserError if they do not meet within --dist-timeout.
    """
    global _cpu_group
    if rank:
        sys.stdout = open(os.devnull, 'w')      # noqa: SIM115
    if 'OMP_NUM_THREADS' not in os.environ:     # the processes of a machine share its cores
        share = torch.get_num_threads() // cluster.processes_here(world)
        torch.set_num_threads((url == 'env://' and cluster.cores_per_task()) or max(1, share))
    device = select_device(gpu_id)
    if device.type == MPS:
        raise UserError('--gpu_id mps: the GPU of a Mac trains in a single process; start one, or give cpu')
    timeout, start = timedelta(seconds=opt.dist_timeout), time.monotonic()
    try:
        with _without_cpp_messages():
            store = unused_store(next(dist.rendezvous(url, rank, world, timeout=timeout))[0], rank, world, timeout)
            dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', store=store, rank=rank,
                                    world_size=world, timeout=timeout,
                                    device_id=device if device.type == 'cuda' else None)
            _cpu_group = dist.group.WORLD if device.type == 'cpu' else dist.new_group(backend='gloo', timeout=timeout)
    except (dist.DistError, RuntimeError, OSError, ValueError) as error:
        address = f'MASTER_ADDR and MASTER_PORT {os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}' \
            if url == 'env://' else f'--dist-url {url}'
        why = cluster.explain_failed_meeting(str(error), world, time.monotonic() - start, opt.dist_timeout)
        raise UserError(f'{address}: {why}') from error
    return device, store


def unused_store(store: dist.Store, rank: int, world: int, timeout: timedelta) -> dist.Store:
    """A part of `store` that only the processes that run now use.

    torchrun keeps one store for all restarts, with the addresses of processes that have ended. So each process writes a
    new random number. Process 0 answers each with its own number, which becomes the name of the part, until all
    processes have read it.
    """
    store.set_timeout(timeout)
    number = uuid.uuid4().hex
    if rank:
        store.set(f'number of {rank}', number)
        name = store.get(f'name for {number}').decode()
        store.set(f'{name}/{rank}', '')
        return dist.PrefixStore(name, store)
    deadline, others = time.monotonic() + timeout.total_seconds(), range(1, world)
    while not all(store.check([f'{number}/{other}']) for other in others):
        for other in others:
            if store.check([f'number of {other}']):
                store.set(f'name for {store.get(f"number of {other}").decode()}', number)
        if time.monotonic() > deadline:
            raise TimeoutError('not all processes came')
        time.sleep(0.02)
    return dist.PrefixStore(number, store)


@contextlib.contextmanager
def _without_cpp_messages():
    """Discard what C++ writes to stderr: dozens of lines about a failure that an exception reports too."""
    if '--debug' in sys.argv:
        yield
        return
    stderr = os.dup(2)
    with open(os.devnull, 'w') as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def agree_on_options(opt) -> None:
    """Copy opt.flags.filled_in, as the seed, from process 0 to all. Raises UserError if options or code differ."""
    given = {name: value for name, value in values(opt).items() if name not in opt.flags.filled_in}
    check_alike({**given, 'torch': torch.__version__, 'code (checksum)': code_checksum()},
                'start all of them with the same command, code and torch')
    vars(opt).update(broadcast(lambda: {name: getattr(opt, name) for name in opt.flags.filled_in}))


def check_alike(named_values: dict, advice: str) -> None:
    """Raise the same UserError in every process unless all have the same `named_values`, name -> value."""
    first, *others = gather({name: repr(value) for name, value in named_values.items()})
    for number, other in enumerate(others, start=1):
        differences = [f'{name} {first.get(name)} and {other.get(name)}' for name in {**first, **other}
                       if first.get(name) != other.get(name)]
        if differences:
            raise UserError(f'process 0 and process {number} differ: {"; ".join(differences)}; {advice}')


def code_checksum() -> int:
    """A checksum of the source files that a run executes."""
    root, crc = Path(__file__).resolve().parents[1], 0
    folders = 'analysis', 'cpu_kernels', 'dataset', 'distiller_zoo', 'helper', 'models'
    files = [*root.glob('*.py'), *(file for folder in folders for file in (root / folder).rglob('*')
                                   if file.suffix in ('.py', '.cpp', '.h'))]
    for file in sorted(files):
        crc = zlib.crc32(file.read_bytes(), crc)
    return crc


def per_process_options(opt):
    """A copy of the options with the batch sizes and num_workers of one process; in `opt` they are totals."""
    world = world_size()
    check_batch_size(opt, world)
    local = copy.copy(opt)
    for name, size in _batch_sizes(opt).items():
        setattr(local, name, size // world)
    local.num_workers = -(-opt.num_workers // world)
    return local


def _batch_sizes(opt):
    """option -> images per step, for the options that are given."""
    return {name: size for name in ('batch_size', 'unlabelled_batch') if (size := getattr(opt, name, None))}


def check_batch_size(opt, world: int) -> None:
    """Raise UserError unless `world` processes can divide the batch sizes evenly."""
    for name, size in _batch_sizes(opt).items():
        if size < world:
            raise UserError(f'--{name} {size}: fewer images than the {world} processes; give at least {world}')
        if size % world:
            raise UserError(f'--{name} {size}: cannot be divided among {world} processes; give a multiple of {world}')


def wrap(module: nn.Module, device: torch.device, **options) -> nn.Module:
    """`module` under DDP if there are several processes. options: of DDP, such as find_unused_parameters=True.

    DDP expects one backward pass a step. So a module with `own_backward` stays as it is, and calls average_gradients.
    """
    if world_size() == 1 or module.own_backward:
        return module
    warnings.filterwarnings('ignore', message='Grad strides do not match')      # 1x1 kernels have ambiguous strides
    # DDP need not synchronise buffers: batch norms are averaged before they are used, and the others are equal.
    names = inspect.signature(DistributedDataParallel).parameters
    buffers = 'forward_sync_buffers' if 'forward_sync_buffers' in names else 'broadcast_buffers'    # until torch 2.14
    wrapped = DistributedDataParallel(module, device_ids=[device] if device.type == 'cuda' else None,
                                      **{buffers: False, 'gradient_as_bucket_view': True, **options})
    wrapped.requires_grad_at_start = _requires_grad(module)
    return wrapped


def rewrap(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` of wrap; under a new DDP if parameters were frozen or unfrozen, which DDP does not notice."""
    is_ddp = isinstance(module, DistributedDataParallel)
    if not is_ddp or module.requires_grad_at_start == _requires_grad(module.module):
        return module
    return wrap(module.module, device)


def _requires_grad(module):
    return [p.requires_grad for p in module.parameters()]


def gather(value) -> list:
    """The `value`s of all processes, anything that pickles, in order of rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value, group=_cpu_group)
    return values


def broadcast(make: Callable):
    """Call make() in process 0 alone, and return its result in every process."""
    values = [make() if is_main() else None]
    if world_size() > 1:
        dist.broadcast_object_list(values, 0, group=_cpu_group)
    return values[0]


def total(x: Tensor) -> Tensor:
    """The sum over the processes, without gradient."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def mean(x: Tensor) -> Tensor:
    """The mean over the processes, without gradient."""
    return total(x) / world_size()


def average_gradients(module: nn.Module) -> None:
    """Replace every gradient by its mean over the processes, which must have gradients for the same parameters."""
    _average([p.grad for p in module.parameters() if p.grad is not None])


def average_batchnorm(module: nn.Module) -> None:
    """Replace all running statistics by their means over the processes, before they are used or saved.

    Those of norms in eval mode are equal, and stay as they are: a mean could be rounded.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    _average([getattr(m, name) for m in norms for name in ('running_mean', 'running_var')
              if getattr(m, name) is not None])


@torch.no_grad()
def _average(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, all in one exchange."""
    if world_size() > 1 and tensors:
        flat = mean(torch.cat([t.flatten() for t in tensors]))
        for t, averaged in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(averaged.view_as(t))


def start_max(value: int) -> tuple:
    """(a tensor that will hold the maximum over the processes, the exchange to wait for); no process waits here."""
    tensor = torch.tensor(value)
    return tensor, dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_cpu_group, async_op=True)


def where(device: torch.device) -> str:
    """The number of processes and the device, for the terminal."""
    return f'{world_size()} processes, {device.type}' if world_size() > 1 else str(device)


def seed_this_process(seed: int) -> None:
    """Give each process its own random numbers, after the module is built the same in all of them."""
    if rank():
        seed_everything(seed + rank(), torch.backends.cudnn.deterministic)
