"""Read the ranks from torchrun or Slurm, and the address where the processes of a run meet.

A run on more than one machine is started by torchrun (PyTorch's launcher) or srun (Slurm's). Either one starts the same
command once for each GPU of each machine, and passes these environment variables:

torchrun          srun                    meaning
RANK              SLURM_PROCID            number of this process among all of them, from 0
WORLD_SIZE        SLURM_STEP_NUM_TASKS    number of processes that train together
LOCAL_RANK        SLURM_LOCALID           number of this process on its machine, from 0
LOCAL_WORLD_SIZE  SLURM_NTASKS_PER_NODE   number of processes on this machine
MASTER_ADDR       SLURM_STEP_NODELIST     machine of process 0, where all processes meet
MASTER_PORT       (from the job's number) port of that machine

PyTorch reads only those of torchrun, so srun's are translated here.
"""
import os
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from .errors import UserError


@dataclass
class Ranks:
    """The numbers of a process that torchrun or srun started."""

    rank: int
    world_size: int
    local_rank: int
    by_srun: bool


def ranks_from_environment() -> Ranks | None:
    """The numbers of this process; None if neither torchrun nor srun started it. Raises UserError."""
    env = os.environ
    by_srun = 'WORLD_SIZE' not in env
    if not by_srun:
        if read_count('WORLD_SIZE') > 1:
            for name in ('RANK', 'MASTER_ADDR', 'MASTER_PORT'):
                if name not in env:
                    raise UserError(f'WORLD_SIZE {env["WORLD_SIZE"]}: {name} is not set; start with torchrun, which '
                                    f'sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT')
        env.setdefault('RANK', '0')
        env.setdefault('LOCAL_RANK', env['RANK'])
        names = 'RANK', 'WORLD_SIZE', 'LOCAL_RANK'
    elif read_count('SLURM_STEP_NUM_TASKS') > 1:
        if 'SLURM_PROCID' not in env:
            raise UserError('SLURM_STEP_NUM_TASKS is set, but SLURM_PROCID is not; start with srun')
        env.setdefault('MASTER_ADDR', first_host(env.get('SLURM_STEP_NODELIST', '127.0.0.1')))
        # Each step has its own port, so that two steps on one machine do not collide.
        port = 20000 + (read_count('SLURM_JOB_ID') * 7 + read_count('SLURM_STEP_ID')) % 40000
        env.setdefault('MASTER_PORT', str(port))
        names = 'SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_LOCALID'
    else:
        return None
    ranks = Ranks(*map(read_count, names), by_srun)
    if ranks.rank >= ranks.world_size:
        raise UserError(f'{names[0]} {ranks.rank}: {names[1]} is {ranks.world_size}; ranks count from 0')
    port = env.get('MASTER_PORT', '1')
    if ranks.world_size > 1 and not (port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(f'MASTER_PORT {port}: give a number from 1 to 65535')
    return ranks


def read_count(name: str) -> int:
    """An environment variable as a number, 0 if it is not set. Raises UserError."""
    text = os.environ.get(name, '0')
    if not text.isdecimal():
        raise UserError(f'{name} {text}: give a whole number of at least 0, or start with torchrun')
    return int(text)


def first_host(nodes: str) -> str:
    """The first machine of Slurm's node list: 'gpu[003-005,9],cpu1' -> 'gpu003'."""
    match = re.match(r'([^\[,]+)(?:\[(\d+))?', nodes)
    return match[1] + (match[2] or '') if match else '127.0.0.1'


def processes_here(world_size: int) -> int:
    """The number of processes on this machine; world_size where torchrun and srun do not say."""
    text = os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_NTASKS_PER_NODE') or ''
    return max(1, int(text)) if text.isdecimal() else world_size


def cores_per_task() -> int:
    """The number of cores that srun gave each of several processes (--cpus-per-task); 0 if it does not say."""
    if 'WORLD_SIZE' in os.environ or read_count('SLURM_STEP_NUM_TASKS') < 2:
        return 0
    # Since Slurm 22.05 the variable may be sbatch's, while srun gave a single core.
    given = read_count('SLURM_CPUS_PER_TASK')
    return min(given, len(os.sched_getaffinity(0))) if hasattr(os, 'sched_getaffinity') else given


def machine_count() -> int:
    """The number of machines that torchrun started this run on; otherwise 1."""
    world, local = (os.environ.get(name, '1') for name in ('WORLD_SIZE', 'LOCAL_WORLD_SIZE'))
    is_known = world.isdecimal() and local.isdecimal() and int(local) > 0
    return max(1, int(world) // int(local)) if is_known else 1


def check_dist_url(url: str) -> None:
    """Raise UserError unless --dist-url is an address of this machine with a free port."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        is_valid = parts.scheme == 'tcp' and host and port and not parts.path.strip('/') and not parts.query
    except ValueError:      # a bracket that is not closed, a port that is no number or too large
        is_valid = False
    if not is_valid:
        raise UserError(f'--dist-url {url}: give tcp://HOST:PORT, as tcp://127.0.0.1:23451')
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(f'--dist-url {url}: cannot be used ({error.strerror or error}); the processes all run on this '
                        f'machine: give one of its addresses, as 127.0.0.1, and a free port') from error


def explain_failed_meeting(error: str, world_size: int, seconds: float, timeout: int) -> str:
    """Why the processes could not connect within `seconds`, and what to do. error: torch's message."""
    reason = ' '.join(error.split())
    if re.search('EADDRINUSE|address already in use', reason):
        return 'the port is in use; give another one'
    is_late = seconds > 0.9 * timeout
    when = f'within {timeout} s' if is_late else f'and gave up after {seconds:.0f} s'
    text = f'the {world_size} processes did not meet {when}'
    if match := re.search(r'remote=\[?([^\],\s]+)', reason):    # process 0 answered, but another process did not
        address = match[1]
        loopback = ', which every machine has for itself; its host name stands for that address in /etc/hosts' \
            if address.startswith(('127.', '::1', '::ffff:127.')) else ''
        return f'{text}: one of them cannot be reached at {address}{loopback}; set GLOO_SOCKET_IFNAME, and ' \
               f'NCCL_SOCKET_IFNAME for GPUs, to the network interface that the machines share, as eth0 of `ip ' \
               f'addr`, for all processes'
    return f'{text} ({reason[:150]}); is the address that of process 0, open to all, and does every process start?' + \
           ' --dist-timeout SECONDS waits longer' * is_late
