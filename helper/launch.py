"""How the processes of a run start, and how all of them end when one does.

Ways to start them: --multiprocessing-distributed (one process for each entry of --gpu_id), torchrun, srun.
"""
import contextlib
import ctypes
import gc
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import active_children, resource_tracker
from multiprocessing.connection import wait
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from . import distributed
from .device import select_device
from .errors import UserError, last_words

# What people, terminals and schedulers send before they end a process: Slurm and Kubernetes SIGTERM, submitit SIGUSR2,
# Grid Engine SIGUSR1, SIGUSR2 and SIGXCPU. Those that are ignored when this process starts stay ignored.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGUSR2', 'SIGHUP', 'SIGXCPU')
                     if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN)


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
        with _one_of_several(outside['rank']):
            end_with_parent(os.getppid())
            _train_together(train, opt, 'env://', outside['rank'], outside['world'], _local_device(opt, outside))
    else:
        train(opt, select_device(opt.gpu_id))


def _train_together(train, opt, *meeting):
    device = distributed.join(opt, *meeting)
    distributed.agree_on_options(opt)
    train(opt, device)
    dist.destroy_process_group()


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


def end_with_parent(parent: int):
    """When the process that started this one is killed, the system signals this one, which then saves and ends."""
    if sys.platform != 'linux':
        return
    ignored = signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    number = signal.SIGKILL if ignored else signal.SIGTERM
    ctypes.CDLL(None).prctl(1, number)      # PR_SET_PDEATHSIG
    if os.getppid() != parent:              # it has ended before it could be watched
        os.kill(os.getpid(), number)


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


@contextlib.contextmanager
def _one_of_several(rank):
    """The whole life of one of several processes, which ends here.

    An error of one, or of all alike, is reported once; not the errors that follow from it in the others.
    """
    code = 0
    try:
        yield
        sys.stdout.flush()
    except SystemExit as stopped:
        code = stopped.code
    except (Exception, KeyboardInterrupt) as error:
        text, code = last_words(error)
        lost = isinstance(error, RuntimeError) and \
            re.search(r'[Cc]onnection (closed|reset|refused)|Broken pipe|gloo|NCCL|store', str(error))
        if lost:
            text, code = 'error: the connection to another process broke; has it ended?\n', 1
        # Whoever started the processes ends the others now; process 0, or the one that knows the reason, comes first.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10 if lost else 2 if rank else 0)
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
    for worker in active_children():
        worker.terminate()
    # At once, without Python's own end: a thread of the group that still runs then can abort the process, and the ends
    # of a broken group can wait for each other. So temporary folders, as wandb's that timm imports, are removed here.
    for found in gc.get_objects():
        if type(found) is tempfile.TemporaryDirectory:
            with contextlib.suppress(OSError):
                found.cleanup()
    os._exit(code)


def _spawn(train, opt):
    """One process for each entry of --gpu_id on this machine; the first failure ends all."""
    entries = opt.gpu_id.split(',')
    if torch.cuda.is_available() and 'cpu' not in entries and len(set(entries)) < len(entries):
        raise UserError(f'--gpu_id {opt.gpu_id}: names a GPU twice; one process trains on one GPU')
    if len({entry == 'cpu' for entry in entries}) > 1:
        raise UserError(f'--gpu_id {opt.gpu_id}: name GPUs, or cpu once for each process')
    for entry in set(entries):
        select_device(entry, quiet=True)
    distributed.check_batch_size(opt, len(entries))
    _check_url(opt.dist_url)
    _start_resource_tracker()
    _hold_ctrl_c(True)      # until this process forwards signals, and the others can take them
    started = torch.multiprocessing.start_processes(_child, (train, opt), len(entries), join=False).processes
    forwarded = []

    def forward(number, _):
        forwarded.append(number)
        for process in started:
            if process.is_alive():
                os.kill(process.pid, number)
    before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    _hold_ctrl_c(False)
    try:
        _wait_for(started, entries, forwarded)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_resource_tracker():
    """Start it before Ctrl-C is blocked, because its start unblocks Ctrl-C; and without its warnings.

    It removes the semaphores of a process that exits without cleaning up, as in _one_of_several, and would warn each
    time.
    """
    before = os.environ.get('PYTHONWARNINGS')
    os.environ['PYTHONWARNINGS'] = ','.join(filter(None, (before, 'ignore:resource_tracker')))
    resource_tracker.ensure_running()
    del os.environ['PYTHONWARNINGS']
    if before is not None:
        os.environ['PYTHONWARNINGS'] = before


def _hold_ctrl_c(hold):
    """Keep Ctrl-C waiting, for this process and those that it starts, or let it through."""
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_BLOCK if hold else signal.SIG_UNBLOCK, [signal.SIGINT])


def _wait_for(processes, entries, forwarded):
    """Wait until all have ended. When one fails, end the others and exit with its code."""
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
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        right = parts.scheme == 'tcp' and host and port and not parts.path.strip('/') and not parts.query
    except ValueError:      # brackets without an end, no number, a number that is too large
        right = False
    if not right:
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
    with _one_of_several(number):
        _hold_ctrl_c(False)
        end_with_parent(torch.multiprocessing.parent_process().pid)
        entries = opt.gpu_id.split(',')
        _train_together(train, opt, opt.dist_url, number, len(entries), entries[number])
