"""The flags that a table's runs may have, and their commands as text."""
import shlex
from argparse import Namespace

from helper.cli import Parser, nearest_flag
from helper.errors import UserError
from options import flags

REFUSED = {     # flag of the train scripts -> why a table's runs cannot have it
    **dict.fromkeys(('--path-t', '--model', '--model-s', '--distill', '--trial', '-t', '--seed', '--save-dir',
                     '--resume', '--gpu-id', '--multiprocessing-distributed', '--dist-url'),
                    'reproduce.py sets this flag itself'),
    **dict.fromkeys(('--evaluate', '--estimate', '--list', '-h', '--help'), 'a run with this flag trains nothing'),
    '--teacher-cache': 'give the table  teacher_cache = true',
    '--overwrite': 'a table replaces no run; move its folder away instead',
}


def check_flags(arguments: list[str], label: str) -> None:
    """Raise UserError for a flag that a table's runs cannot have."""
    for argument in arguments:
        flag = argument.split('=')[0].replace('_', '-') if argument.startswith('--') else argument[:2]
        if flag in REFUSED:
            raise UserError(f'{label}: {argument}: {REFUSED[flag]}; leave it out')


def parse_known_flags(parser: Parser) -> tuple[Namespace, list[str]]:
    """Return the options of a script, and the remaining arguments, which are flags of every run. Raises UserError."""
    opt, extra_args = parser.parse_known()
    known = {*parser.flags().defaults, *flags(student=True).defaults, *flags(student=False).defaults}
    for flag in (argument.partition('=')[0] for argument in extra_args if argument.startswith('--')):
        name = flag[2:].replace('-', '_')
        if not {name, name.removeprefix('no_')} & known:
            parser.error(f'{flag}: no such flag; {nearest_flag(flag, (f"--{other}" for other in known))}')
    return opt, extra_args


def shell(argv: list[str], threads: str | None = None) -> str:
    """Return a command line for a shell. threads: the value of OMP_NUM_THREADS."""
    return (f'OMP_NUM_THREADS={shlex.quote(threads)} ' if threads else '') + shlex.join(argv)
