"""The flags that the runs of a table or of a search cannot have, because the program sets them itself."""
from helper.errors import UserError

REFUSED = {     # flag of the train scripts -> why a table's runs cannot have it
    **dict.fromkeys(('--path-t', '--model', '--model-s', '--distill', '--trial', '-t', '--seed', '--save-dir',
                     '--resume', '--gpu-id', '--multiprocessing-distributed', '--dist-url'),
                    'the program sets this flag itself'),
    **dict.fromkeys(('--evaluate', '--estimate', '--list', '-h', '--help'), 'a run with this flag trains nothing'),
    '--no-test': 'the report of a table shows figures of the test set',
    '--teacher-cache': 'give the table  teacher_cache = true',
    '--cache-topk': 'give the table  teacher_cache = "--cache_topk K"',
    '--overwrite': 'a table replaces no run; move its folder away instead',
}


def check_flags(arguments: list[str], label: str) -> None:
    """Raise UserError for a flag that a table's runs cannot have."""
    for argument in arguments:
        flag = argument.split('=')[0].replace('_', '-') if argument.startswith('--') else argument[:2]
        if flag in REFUSED:
            raise UserError(f'{label}: {argument}: {REFUSED[flag]}; leave it out')
