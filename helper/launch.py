"""Start the processes of a run, and end all of them when one ends.

Processes are started by --multiprocessing-distributed (one for each entry of --gpu_id), torchrun or srun.
"""
import contextlib
import ctypes
import gc
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import active_children, resource_tracker
from multiprocessing.connection import wait

import torch
import torch.distributed as dist

from . import cluster, distributed, heartbeat
from .device import select_device
from .errors import UserError, describe_failure

# Signals that people, terminals and schedulers send before they end a process: Slurm and Kubernetes SIGTERM, submitit
# SIGUSR2, Grid Engine SIGUSR1, SIGUSR2 and SIGXCPU. Signals that are ignored when this process starts stay ignored.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGUSR2', 'SIGHUP', 'SIGXCPU')
                     if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN)


def launch(train: Callable, opt) -> None:
    """Call train(opt, device) in this process, in new ones, or in each of those that torchrun or srun started."""
    if opt.multiprocessing_distributed:
        if 'WORLD_SIZE' in os.environ:
            raise UserError('--multiprocessing-distributed: WORLD_SIZE is set, so torchrun or the like has started the '
                            'processes; leave the flag out, or unset WORLD_SIZE')
        spawn(train, opt)
        return
    ranks = cluster.ranks_from_environment()
    if ranks and ranks.world_size > 1:
        with process_lifetime(ranks.rank):
            end_with_parent(os.getppid())
            train_together(train, opt, 'env://', ranks.rank, ranks.world_size, select_local_gpu(opt, ranks))
    else:
        if 'TORCHELASTIC_RUN_ID' in os.environ:     # the only node of several that is there
            end_with_parent(os.getppid())
        train(opt, select_device(opt.gpu_id))


def train_together(train: Callable, opt, url: str, rank: int, world_size: int, gpu_id: str) -> None:
    """Call train(opt, device) as one of several processes."""
    device, store = distributed.join(opt, url, rank, world_size, gpu_id)
    heartbeat.start(store, rank, world_size, end_process)
    distributed.agree_on_options(opt)
    train(opt, device)
    dist.destroy_process_group()


def select_local_gpu(opt, ranks: cluster.Ranks) -> str:
    """The entry of --gpu_id for a process that torchrun or srun started. Raises UserError."""
    entries = opt.gpu_id.split(',')
    if entries[0] == 'cpu' or not torch.cuda.is_available():
        return entries[0]
    local = ranks.local_rank
    if len(entries) > 1:
        if local >= len(entries):
            raise UserError(f'--gpu_id {opt.gpu_id}: names {len(entries)} GPUs, but this machine has a process '
                            f'{local + 1}; start fewer, or name more')
        return entries[local]
    count = torch.cuda.device_count()
    if count == 1 and ranks.by_srun:        # srun shows each task only its own GPU
        return '0'
    if local >= count:
        raise UserError(f'process {local + 1} of this machine has no GPU: there are {count}; start at most {count}')
    return str(local)


def end_with_parent(parent: int) -> None:
    """Let the system send SIGTERM to this process when its parent is killed, so that it saves and ends."""
    if sys.platform != 'linux':
        return
    is_ignored = signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    number = signal.SIGKILL if is_ignored else signal.SIGTERM
    ctypes.CDLL(None).prctl(1, number)      # PR_SET_PDEATHSIG
    if os.getppid() != parent:              # the parent ended before this call
        os.kill(os.getpid(), number)


@contextlib.contextmanager
def process_lifetime(rank: int):
    """Return a context for one of several processes; the process ends with it. One process reports each error."""
    code, text = 0, ''
    try:
        yield
        sys.stdout.flush()
    except SystemExit as stopped:
        code = stopped.code
    except (Exception, KeyboardInterrupt) as error:
        text, code = describe_failure(error)
        is_consequence = isinstance(error, RuntimeError) and \
            re.search(r'[Cc]onnection (closed|reset|refused)|Broken pipe|gloo|NCCL|store', str(error))
        # The launcher ends all processes as soon as one has ended. So the process that knows the cause ends first, or
        # else process 0. The others still have to learn which process is lost, so they ignore SIGTERM meanwhile.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if is_consequence else signal.SIG_DFL)
        if is_consequence:
            text, code = heartbeat.explain(), 1
        time.sleep(2 if is_consequence or rank else 0)
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
    heartbeat.stop(text)
    end_process(code)


def end_process(code: int) -> None:
    """End this process at once, and those that it started.

    Python's own exit is skipped: a thread of the process group that is still running could abort the process, and the
    destructors of a broken group can wait for each other. So temporary folders, as wandb's, are removed here.
    """
    for worker in active_children():
        worker.terminate()
    for item in gc.get_objects():
        if type(item) is tempfile.TemporaryDirectory:
            with contextlib.suppress(OSError):
                item.cleanup()
    os._exit(code)


def spawn(train: Callable, opt) -> None:
    """Start a process for each entry of --gpu_id on this machine, and wait; the first failure ends all."""
    entries = opt.gpu_id.split(',')
    if torch.cuda.is_available() and 'cpu' not in entries and len(set(entries)) < len(entries):
        raise UserError(f'--gpu_id {opt.gpu_id}: names a GPU twice; one process trains on one GPU')
    if len({entry == 'cpu' for entry in entries}) > 1:
        raise UserError(f'--gpu_id {opt.gpu_id}: name GPUs, or cpu once for each process')
    for entry in set(entries):
        select_device(entry, only_check=True)
    distributed.check_batch_size(opt, len(entries))
    cluster.check_dist_url(opt.dist_url)
    start_resource_tracker()        # unblocks Ctrl-C
    block_ctrl_c(True)      # until this process forwards signals and the new ones handle them
    processes = torch.multiprocessing.start_processes(_child, (train, opt), len(entries), join=False).processes
    forwarded = []

    def forward(number, _):
        forwarded.append(number)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)
    old_handlers = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    block_ctrl_c(False)
    try:
        wait_for_all(processes, entries, forwarded)
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


def _child(rank, train, opt):
    with process_lifetime(rank):
        block_ctrl_c(False)
        end_with_parent(torch.multiprocessing.parent_process().pid)
        entries = opt.gpu_id.split(',')
        train_together(train, opt, opt.dist_url, rank, len(entries), entries[rank])


def start_resource_tracker() -> None:
    """Start Python's resource tracker, which would warn of each process that exits at once, without its warnings."""
    before = os.environ.get('PYTHONWARNINGS')
    os.environ['PYTHONWARNINGS'] = ','.join(filter(None, (before, 'ignore:resource_tracker')))
    resource_tracker.ensure_running()
    del os.environ['PYTHONWARNINGS']
    if before is not None:
        os.environ['PYTHONWARNINGS'] = before


def block_ctrl_c(is_blocked: bool) -> None:
    """Hold Ctrl-C back from this process and those that it starts, or deliver it."""
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_BLOCK if is_blocked else signal.SIG_UNBLOCK, [signal.SIGINT])


def wait_for_all(processes: list, entries: list[str], forwarded: list[int]) -> None:
    """Wait until all processes have ended. When one fails, end the others and exit with its code.

    forwarded: the stop signals that the processes were sent.
    """
    alive, failed = processes, None
    while alive and failed is None:
        wait([process.sentinel for process in alive])
        alive = [process for process in alive if process.is_alive()]
        failed = next((rank for rank, process in enumerate(processes) if process.exitcode), None)
    if failed is None:
        return
    code = processes[failed].exitcode
    is_stopping = code > 128 or forwarded       # then all save and end by themselves
    for grace, end in ((30, 'terminate'), (3, 'kill')) if is_stopping else ((0.1, 'kill'),):
        deadline = time.monotonic() + grace
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
            if process.is_alive():
                getattr(process, end)()
    for process in processes:
        process.join()
    if code < 0 and not forwarded:
        sys.stderr.write(f'error: process {failed} ({entries[failed]}) was ended by '
                         f'{signal.Signals(-code).name}; the others were ended too\n')
    sys.exit(code if code > 0 else 128 - code)
