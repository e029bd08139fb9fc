"""Several processes that train one model: how they start, and what they do together.

Ways to start them: --multiprocessing-distributed (one process for each entry of --gpu_id), torchrun, srun.
"""
import contextlib
import copy
import ctypes
import inspect
import os
import re
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .device import select_device
from .errors import UserError
from .sync_batchnorm import synchronise_batchnorm

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


def launch(train: Callable, opt) -> None:
    """Call train(opt, device) in each process: here alone, in new ones, or as one of torchrun's or srun's."""
    if opt.multiprocessing_distributed and 'WORLD_SIZE' in os.environ:
        raise UserError('--multiprocessing-distributed: WORLD_SIZE is set, so torchrun or the like has started the '
                        'processes; leave the flag out, or unset WORLD_SIZE')
    if opt.multiprocessing_distributed:
        _spawn(train, opt)
        return
    outside = _outside()
    if outside and outside['world'] > 1:
        with _one_line(outside['rank']):
            _end_with_parent()
            _join_group(opt, 'env://', outside['rank'], outside['world'], _local_device(opt, outside))
            train(opt, dist_device())
            dist.destroy_process_group()
    else:
        train(opt, select_device(opt.gpu_id))


def share(opt):
    """The options with this process's part of batch_size and num_workers, which are totals. Raises UserError."""
    world = world_size()
    check_batch_size(opt, world)
    part = copy.copy(opt)
    part.batch_size = opt.batch_size // world
    part.num_workers = -(-opt.num_workers // world)
    return part


def check_batch_size(opt, world: int) -> None:
    """Raises UserError unless `world` processes can divide --batch_size evenly."""
    if opt.batch_size < world:
        raise UserError(f'--batch_size {opt.batch_size}: fewer images than the {world} processes; give at least '
                        f'{world}')
    if opt.batch_size % world:
        raise UserError(f'--batch_size {opt.batch_size}: cannot be divided among {world} processes; '
                        f'give a multiple of {world}')


def wrap(module: nn.Module, device: torch.device, unused: bool = False) -> nn.Module:
    """`module` under DDP where there are several processes. unused: some of its parameters may get no gradient."""
    if world_size() == 1:
        return module
    warnings.filterwarnings('ignore', message='Grad strides do not match')      # of 1x1 kernels, which have two names
    # Buffers are no business of DDP's: batch norms are averaged before they are used, and the rest is kept equal.
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


def broadcast(make: Callable | None):
    """What make() gives in process 0, in every process."""
    values = [make() if make else None]
    if world_size() > 1:
        dist.broadcast_object_list(values, 0, group=_control)
    return values[0]


def gather_rows(x: torch.Tensor) -> torch.Tensor:
    """(N, ...) of every process, of one N -> (world * N, ...), in order of rank. No gradient flows back."""
    if world_size() == 1:
        return x
    x = x.detach().contiguous()
    rows = x.new_empty(world_size() * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(rows, x)
    return rows


def mean(x: torch.Tensor) -> torch.Tensor:
    """The mean over the processes, without gradient."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world_size()


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


class Agreement:
    """A number that every process sets on its own and all read alike: the largest, one call later.

    Later, so that nobody waits for the network: the exchange goes on beside the next step.
    """

    def __init__(self):
        self.pending = None

    def largest(self, value: int) -> int:
        """The largest value that was given in the last call, in any process; alone, this `value`."""
        if world_size() == 1:
            return value
        before = self.settle()
        tensor = torch.tensor(value)
        self.pending = tensor, dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_control, async_op=True)
        return before

    def settle(self) -> int:
        """What the last call's exchange gave."""
        if self.pending is None:
            return 0
        tensor, work = self.pending
        work.wait()
        self.pending = None
        return int(tensor)


def where(device: torch.device) -> str:
    """The device as a person reads it."""
    return f'{world_size()} processes, {device.type}' if world_size() > 1 else str(device)


def prepare(module: nn.Module, opt) -> None:
    """After `module` was built, alike in all processes: random numbers of its own for each, and --sync_bn."""
    if rank():
        torch.manual_seed(opt.seed + rank())
    if opt.sync_bn and world_size() > 1:
        synchronise_batchnorm(module)


# Starting

def _outside() -> dict | None:
    """rank, world and local rank as torchrun, or else srun, gives them; None when neither started this process."""
    env = os.environ
    if 'WORLD_SIZE' in env:
        names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
        if int_of('WORLD_SIZE') > 1:
            for name in ('RANK', 'MASTER_ADDR', 'MASTER_PORT'):
                if name not in env:
                    raise UserError(f'WORLD_SIZE {env["WORLD_SIZE"]}: {name} is not set; start with torchrun, which '
                                    f'sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT')
        env.setdefault('RANK', '0')
        env.setdefault('LOCAL_RANK', env['RANK'])
        return _place(names)
    if 'SLURM_STEP_NUM_TASKS' in env and int_of('SLURM_STEP_NUM_TASKS') > 1:
        names = ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_LOCALID')
        env.setdefault('MASTER_ADDR', first_host(env.get('SLURM_STEP_NODELIST', '127.0.0.1')))
        # One port for the step, so that two steps on one node do not meet.
        env.setdefault('MASTER_PORT', str(20000 + (int_of('SLURM_JOB_ID') * 7 + int_of('SLURM_STEP_ID')) % 40000))
        if 'SLURM_PROCID' not in env:
            raise UserError('SLURM_STEP_NUM_TASKS is set, but SLURM_PROCID is not; start with srun')
        return {**_place(names), 'srun': True}
    return None


def _place(names):
    found = dict(zip(('rank', 'world', 'local'), map(int_of, names), strict=True))
    if found['rank'] >= found['world']:
        raise UserError(f'{names[0]} {found["rank"]}: {names[1]} is {found["world"]}; ranks count from 0')
    port = os.environ.get('MASTER_PORT', '1')
    if found['world'] > 1 and not (port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(f'MASTER_PORT {port}: give a number from 1 to 65535')
    return found


def int_of(name: str) -> int:
    """An environment variable as a number. Raises UserError."""
    text = os.environ.get(name, '0')
    if not text.isdecimal():
        raise UserError(f'{name} {text}: give a whole number of at least 0, or start with torchrun')
    return int(text)


def first_host(nodes: str) -> str:
    """The first of Slurm's node list: 'gpu[003-005,9],cpu1' -> 'gpu003'."""
    match = re.match(r'([^\[,]+)(?:\[(\d+))?', nodes)
    return match[1] + (match[2] or '') if match else '127.0.0.1'


def _end_with_parent():
    """If what started this process is killed, this one gets SIGTERM: it saves and ends, instead of training on."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)      # PR_SET_PDEATHSIG


def _local_device(opt, outside):
    """The device of this process among those of its machine, which torchrun or srun started."""
    local = outside['local']
    entries = opt.gpu_id.split(',')
    if entries[0] == 'cpu' or not torch.cuda.is_available():
        return 'cpu' if entries[0] == 'cpu' else entries[0]
    if len(entries) > 1:
        if local >= len(entries):
            raise UserError(f'--gpu_id {opt.gpu_id}: names {len(entries)} GPUs, but this machine has a process '
                            f'{local + 1}; start fewer, or name more')
        return entries[local]
    count = torch.cuda.device_count()
    if count == 1 and 'srun' in outside:        # srun has given each task a GPU of its own
        return '0'
    if local >= count:
        raise UserError(f'process {local + 1} of this machine has no GPU: there are {count}; start at most {count}')
    return str(local)


def dist_device() -> torch.device:
    """The device of this process in its group."""
    return torch.device('cuda', torch.cuda.current_device()) if dist.get_backend() == 'nccl' else torch.device('cpu')


def _join_group(opt, url, rank, world, gpu_id):
    global _control
    if rank:        # one process speaks for all
        sys.stdout = open(os.devnull, 'w')      # noqa: SIM115
    if 'OMP_NUM_THREADS' not in os.environ:     # of this machine's cores a part each
        text = os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_NTASKS_PER_NODE') or ''
        here = max(1, int(text)) if text.isdecimal() else world
        torch.set_num_threads(max(1, torch.get_num_threads() // here))
    device = select_device(gpu_id)
    address = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}' if url == 'env://' else url
    try:
        dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', init_method=url, rank=rank,
                                world_size=world, timeout=timedelta(seconds=opt.dist_timeout),
                                device_id=device if device.type == 'cuda' else None)
        _control = dist.group.WORLD if device.type == 'cpu' else dist.new_group(
            backend='gloo', timeout=timedelta(seconds=opt.dist_timeout))
    except (dist.DistError, RuntimeError, OSError, ValueError) as error:
        reason = ' '.join(str(error).split())
        in_use = re.search('EADDRINUSE|address already in use', reason)
        name = 'MASTER_ADDR and MASTER_PORT' if url == 'env://' else '--dist-url'
        raise UserError(f'{name} {address}: ' + (
            'the port is in use; give another one' if in_use else
            f'the {world} processes did not meet within {opt.dist_timeout} s ({reason[:150]}); is the address that of '
            f'process 0, open to all, and does every process start? --dist-timeout SECONDS waits longer')) from error


@contextlib.contextmanager
def _one_line(rank):
    """An error of one process, or of all alike, is said once; what it breaks in the others is not said at all."""
    try:
        yield
        return
    except UserError as error:
        text, code = f'error: {error}\n', 2
    except KeyboardInterrupt:
        text, code = '', 128 + signal.SIGINT
    except Exception as error:
        lost = rank >= 0 and re.search(r'[Cc]onnection (closed|reset|refused)|Broken pipe|gloo|NCCL|store', str(error))
        if isinstance(error, (dist.DistError, RuntimeError)) and lost:
            text, code = 'error: the connection to another process broke; has it ended?\n', 1
        else:
            text, code = traceback.format_exc(), 1
    # Whoever started the processes ends the others now; process 0, or the one that knows the reason, comes first.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(10 if 'connection to another' in text else 2 if rank else 0)
    sys.stderr.write(text)
    sys.stderr.flush()
    os._exit(code)      # at once: the ends of a broken group can wait for each other


def _spawn(train, opt):
    """One process for each entry of --gpu_id on this machine; the first that fails ends all."""
    entries = opt.gpu_id.split(',')
    if torch.cuda.is_available() and 'cpu' not in entries and len(set(entries)) < len(entries):
        raise UserError(f'--gpu_id {opt.gpu_id}: names a GPU twice; one process trains on one GPU')
    if len({entry == 'cpu' for entry in entries}) > 1:
        raise UserError(f'--gpu_id {opt.gpu_id}: name GPUs, or cpu once for each process')
    for entry in set(entries):
        select_device(entry, quiet=True)
    check_batch_size(opt, len(entries))
    _check_url(opt.dist_url)
    started = torch.multiprocessing.start_processes(_child, (train, opt), len(entries), join=False).processes
    forwarded = []

    def forward(number, _):
        forwarded.append(number)
        for process in started:
            if process.is_alive():
                os.kill(process.pid, number)
    before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        _wait_for(started, entries, forwarded)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


STOP_SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGHUP')
                     if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN)


def _wait_for(processes, entries, forwarded):
    """Until all have ended well, or one has not: then the others are ended too, and so is this one."""
    alive = {process.sentinel: number for number, process in enumerate(processes)}
    failed = None
    while alive and failed is None:
        for sentinel in wait(list(alive)):
            number = alive.pop(sentinel)
            processes[number].join()
            if processes[number].exitcode != 0 and failed is None:
                failed = number
    if failed is None:
        return
    code = processes[failed].exitcode
    stopping = code > 128 or forwarded      # they all end on their own
    for grace, end in ((30 if stopping else 0.1, 'terminate'), (3, 'kill')):
        until = time.monotonic() + grace
        for process in processes:
            process.join(max(0, until - time.monotonic()))
            if process.is_alive():
                getattr(process, end)()
    for process in processes:
        process.join()
    if code < 0 and not forwarded:
        sys.stderr.write(f'error: process {failed} ({entries[failed]}) was ended by '
                         f'{signal.Signals(-code).name}; the others were ended too\n')
    sys.exit(code if code > 0 else 128 - code)


def _check_url(url):
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme != 'tcp' or not host or not port:
        raise UserError(f'--dist-url {url}: give tcp://HOST:PORT, as tcp://127.0.0.1:23451')
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f'--dist-url {url}: cannot be used ({reason}); the processes all run on this machine: give '
                        f'one of its addresses, as 127.0.0.1, and a free port') from error


def _child(number, train, opt):
    with _one_line(number):
        entries = opt.gpu_id.split(',')
        _join_group(opt, opt.dist_url, number, len(entries), entries[number])
        train(opt, dist_device())
        dist.destroy_process_group()
