"""The methods and flags that the runs of a table or of a search cannot have."""
from distiller_zoo import get_method
from helper.errors import UserError
from options import flags

SET_HERE = 'the program sets this flag itself'
REFUSED = {     # flag of the train scripts -> why a table's runs cannot have it
    **dict.fromkeys(('--path-t', '--model', '--model-s', '--distill', '--trial', '-t', '--seed', '--save-dir',
                     '--resume', '--gpu-id', '--multiprocessing-distributed', '--dist-url'), SET_HERE),
    **dict.fromkeys(('--evaluate', '--estimate', '--list', '-h', '--help'), 'a run with this flag trains nothing'),
    '--no-test': 'the report of a table shows figures of the test set',
    '--teacher-cache': 'give the table  teacher_cache = true',
    '--cache-topk': 'give the table  teacher_cache = "--cache_topk K"',
    '--overwrite': 'a table replaces no run; move its folder away instead',
}


def check_method(name: str, source: str) -> None:
    """Raise UserError that begins with `source` for an unknown method, and for one without an accuracy."""
    if not get_method(name, source).spec.learns_classes:
        raise UserError(f'{source} {name}: learns no classes, so there is no accuracy to compare; train with it first, '
                        f'and give the checkpoint to the runs of the table by --initial_checkpoint')


def check_flags(arguments: list[str], label: str, refused: dict[str, str] = REFUSED) -> None:
    """Raise UserError for a flag that a table's runs cannot have. refused: flag -> why."""
    for argument in arguments:
        flag = argument.split('=')[0].replace('_', '-') if argument.startswith('--') else argument[:2]
        if flag in refused:
            raise UserError(f'{label}: {argument}: {refused[flag]}; leave it out')


def check_teachers_accept(arguments: list[str], label: str) -> None:
    """Raise UserError for a flag of train_student.py that train_teacher.py does not have."""
    of_students = flags(student=True).defaults.keys() - flags(student=False).defaults.keys()
    for argument in arguments:
        flag = argument.split('=')[0]
        if flag.startswith('--') and flag[2:].replace('-', '_') in of_students:
            raise UserError(f'{label}: {flag}: its flags go to every run, but train_teacher.py has no such flag; give '
                            f'it in the student_options of the table')
