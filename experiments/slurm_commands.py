"""The commands of Slurm: their answers, and what they accept."""
import math
import re
import shutil
import subprocess

from helper.errors import UserError, nearest, printable, reason

COMMANDS = 'sbatch', 'squeue', 'sinfo', 'scancel', 'scontrol', 'srun'
# Options of sbatch that --sbatch cannot set, since slurm.py sets them or needs their default.
OURS = {'array', 'chdir', 'error', 'job-name', 'nodes', 'ntasks', 'ntasks-per-node', 'open-mode', 'output', 'parsable',
        'quiet', 'requeue', 'signal', 'test-only', 'wait', 'wrap'}
FLAGS = {'partition': '--partition', 'cpus-per-task': '--cpus', 'time': '--time'}


def check_commands() -> None:
    """Raise UserError if a command is missing."""
    if missing := [command for command in COMMANDS if not shutil.which(command)]:
        raise UserError(f"--cluster slurm: there is no {missing[0]} here; run this where Slurm's commands are, or "
                        f'leave it out to run on this machine')


def ask(*argv: str) -> str:
    """Return the output of a command. Raises UserError."""
    try:
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        text = message(getattr(error, 'stderr', None) or error)
        raise UserError(f'--cluster slurm: {argv[0]} does not answer ({text})') from error


def message(error) -> str:
    """Return the message of a command, without the command's name and its advice to ask for help."""
    lines = [re.sub(r'^sbatch: (error: )?', '', line) for line in str(error).splitlines()
             if not line.startswith('Try "')]
    return printable(' '.join(lines))[:500] or reason(error)


def configured(name: str) -> str | None:
    """Return a value of Slurm's configuration; None if it is not there."""
    match = re.search(rf'^{name}\s*=\s*(\S+)', ask('scontrol', 'show', 'config'), re.M)
    return match[1] if match else None


def parse_option(text: str) -> tuple[str, str]:
    """Return the key and the value of an argument of --sbatch."""
    key, equals, value = text.partition('=')
    if not equals or not value or not re.fullmatch(r'[a-z][a-z_-]*', key):
        raise UserError(f'--sbatch {text}: give KEY=VALUE, as account=vision')
    name = key.replace('_', '-')
    if name in FLAGS:
        raise UserError(f'--sbatch {text}: give it by {FLAGS[name]}')
    if name in OURS:
        raise UserError(f'--sbatch {text}: reproduce.py sets this option itself; leave it out')
    return key.replace('-', '_'), value


def check_partition(partition: str | None, cpus: int, minutes: int, has_qos: bool) -> None:
    """Raise UserError for jobs that would wait for ever: sbatch accepts more than a partition has."""
    nodes = [line.split() for line in ask('sinfo', '-a', '-h', '-N', '-o', '%P %l %c').splitlines()]
    names = {name.rstrip('*') for name, *_ in nodes}
    used = {name.rstrip('*') for name, *_ in nodes if name.endswith('*')} if partition is None else partition.split(',')
    if not used:
        raise UserError(f'--partition: this Slurm has no default; {nearest("", names)}')
    if not {*used} <= names:
        raise UserError(f'--partition {partition}: no such partition; {nearest("", names)}')
    limits, node_cpus = zip(*((_minutes(limit), int(count)) for name, limit, count in nodes
                              if name.rstrip('*') in used), strict=True)
    first = [*used][0]
    if minutes > max(limits) and not has_qos:       # a QOS can raise the limit
        raise UserError(f'--time {minutes}: partition {first} gives a job at most {max(limits):.0f} minutes; a run '
                        f'that needs more is queued again and continues')
    if cpus > max(node_cpus):
        raise UserError(f'--cpus {cpus}: a node of partition {first} has at most {max(node_cpus)}')


def _minutes(limit: str) -> float:
    """Return the minutes of a time limit: '1-02:00:00' is 1560."""
    match = re.fullmatch(r'(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)', limit)
    days, hours, minutes, seconds = (int(text or 0) for text in match.groups()) if match else (0, math.inf, 0, 0)
    return days * 1440 + hours * 60 + minutes + seconds / 60
