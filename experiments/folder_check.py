"""What the folders of a table hold before it starts: other runs, runs of another teacher, files that are damaged."""
import contextlib
import os
import sys
from pathlib import Path

from analysis.run_checkpoint import RunCheckpoint
from analysis.runs import DATA_FACTS, read_run
from helper.checkpoint import load_checkpoint, load_weights, weights_checksum
from helper.cli import current_options
from helper.errors import UserError, printable
from helper.files import read_json, write_json
from helper.state import LAST, PREVIOUS
from models.find import build
from models.foreign import without_prefix

from .plan import SIZES, Step, expected, pixels
from .progress import last_is_best, result
from .table_file import Table

CHECKSUM = 'teacher (checksum)'     # in a student's parameters.json, of the net from which it has learnt
OF_A_PART = 'training images', 'labels (checksum)'      # facts of the data that --train_fraction changes
OWNER = 'table.json'    # in the folder of a table: its name and its file
UNKNOWN = 'unknown'     # the checksum of a net whose number of classes only its images say


class _Lost(UserError):
    """A file is damaged or missing; the other runs can still be reported."""


def check(table: Table, steps: list[Step], reading: bool = False) -> None:
    """Raises UserError if the folder belongs to another table, if a run there has other options, other data or another
    teacher, and if a file is damaged or missing. reading: nothing will be started, so damaged and missing files are
    only reported."""
    try:
        _check_owner(table, Path(steps[0].opt.save_dir))
        for step in steps:
            with _said(reading):
                _check_options(step)
            with _said(reading):
                _check_last(step)
        check_data(steps)
        with _said(reading):
            _check_teachers(steps, reading)
    except OSError as error:
        raise UserError(f'--save_dir {steps[0].opt.save_dir}: cannot be read ({error.strerror}: {error.filename}); '
                        f'give a folder that you may read and write, with a shorter name where it is too long'
                        ) from error


@contextlib.contextmanager
def _said(reading):
    try:
        yield
    except _Lost as error:
        if not reading:
            raise
        print(printable(error), file=sys.stderr)


def _check_owner(table, save):
    owner = owner_of(save)
    if owner not in (None, table.name):
        raise UserError(f'--save_dir {save}: is the folder of the table {owner}, whose report and logs this one would '
                        f'replace; give each table a folder of its own, as save/{table.name}')


def owner_of(save: Path) -> str | None:
    """The name of the table that has claimed the folder; None if there is none."""
    return _noted(save, 'table')


def file_of(save: Path) -> str | None:
    """The path of that table's file; None if it is not noted, or no longer there."""
    file = _noted(save, 'file')
    return file if file and os.path.isfile(file) else None


def _noted(save, key):
    with contextlib.suppress(UserError):        # of an older version, or damaged
        found = read_json(save / OWNER, '')
        value = found.get(key) if isinstance(found, dict) else None
        return value if isinstance(value, str) else None
    return None


def claim(table: Table, save: Path) -> None:
    """Write the table's name and the path of its file into its folder, for owner_of and file_of."""
    write_json(save / OWNER, {'table': table.name, 'file': os.path.abspath(table.path)})


def _check_last(step):
    """Raises _Lost for an unfinished run that has begun but has no last.pth."""
    there = [name for name in ('history.json', 'test_best_metrics.json', step.checkpoint.name)
             if (step.folder / name).exists()]
    if there and not any((step.folder / name).exists() for name in (LAST, PREVIOUS)) and not result(step):
        raise _Lost(f'{step.what}: {step.folder}: the run there cannot continue, because its {LAST} is lost; move '
                    f'the folder away, and the same command trains it again')


def check_data(steps: list[Step]) -> None:
    """Raises UserError unless all runs so far, also the teachers', have the same data."""
    runs = {}       # (--dataset, --data_dir) -> the first run on it, and its facts
    for step in steps:
        found = {}
        with contextlib.suppress(UserError):        # damaged; _check_options reports it
            found = _parameters(step) or {}
        facts = {(name, step.opt.train_fraction if name in OF_A_PART else 1): found[name] for name in DATA_FACTS
                 if name in found}
        first, known = runs.setdefault((step.opt.dataset, step.opt.data_dir), (step, {}))
        differ = [f'{key[0]} {value} and {known[key]}' for key, value in facts.items()
                  if known.get(key, value) != value]
        if differ:
            raise UserError(f'{step.what}: {step.folder} holds a run on other data than {first.folder} ({differ[0]}); '
                            f'the data have changed in between: move the runs on the other data away, or give another '
                            f'--save_dir')
        runs[step.opt.dataset, step.opt.data_dir] = first if known else step, {**facts, **known}


def _check_options(step):
    found = _parameters(step)
    if found is None:
        return
    found = {**step.opt.flags.defaults, **found}
    differ = [f'{name} {found.get(name)}, not {wanted}' for name, wanted in expected(step.opt).items()
              if found.get(name) != wanted]
    teacher = getattr(step.opt, 'path_t', None)
    if teacher and not _same_path(found, teacher):
        differ.append(f'the teacher {found.get("path_t")}, not {teacher}')
    if differ:
        raise UserError(f'{step.what}: {step.folder} holds a run with {"; ".join(differ[:5])}; move it away, or give '
                        f'another --save_dir')


def _same_path(parameters, teacher):
    return Path(str(parameters.get('path_t'))).parts[-2:] == Path(teacher).parts[-2:]


def _parameters(step) -> dict | None:
    """The parameters.json of a step's run; None where there is none."""
    path = step.folder / 'parameters.json'
    if not path.exists():
        return None
    advice = 'delete it, and the same command writes it again'
    try:
        found = read_json(path, f'{step.what}: {path}')
    except UserError as error:
        raise _Lost(f'{error}; {advice}') from error
    if not isinstance(found, dict) or not found:
        raise _Lost(f'{step.what}: {path}: holds no options; {advice}')
    return current_options(found)


def _check_teachers(steps, reading):
    """Each student's run has learnt from the teacher that is there now, and each teacher's checkpoint can be read."""
    teachers, other, gone = {}, [], []
    for step in steps:
        path = getattr(step.opt, 'path_t', None)
        learnt_from = _learnt_from(step) if path else None
        if path and path not in teachers and (learnt_from is not None or not reading):
            teachers[path] = _teacher(step)
        if learnt_from is not None and teachers[path] not in (learnt_from, UNKNOWN):
            (gone if teachers[path] is None else other).append(step)
    for found, error, text in (
            (other, UserError, 'learnt from another teacher than {}; move {} away, or put that teacher back'),
            (gone, _Lost, 'learnt from a teacher that is no longer there, {}; move {} away, or put the teacher back')):
        if found:
            first, more = found[0], len(found) - 1
            raise error(f'{first.what}: {first.folder} '
                        + (f'and {more} more hold runs that ' if more else 'holds a run that ')
                        + text.format(first.opt.path_t, 'them' if more else 'it'))


def _learnt_from(step):
    """The checksum of the net that taught a student's run; None where it is not known, or a path tells it already."""
    with contextlib.suppress(UserError):
        found = _parameters(step)
        return found.get(CHECKSUM) if found and _same_path(found, step.opt.path_t) else None
    return None


def _teacher(step):
    """The checksum of the net that teaches a student, or of the one that its resumed run will save; None where there is
    none yet."""
    path, maker = Path(step.opt.path_t), step.after
    what = f'{maker.what}:' if maker else f'{step.what}: teacher'
    lost = maker is not None and _is_lost(maker)
    anew = f'move {path.parent} away, with those of its students, and the same command trains them again'
    if path.is_file():
        try:
            given = RunCheckpoint(what, path, {})
            checkpoint = given.state
            if maker and result(maker) and (words := given.metrics_difference()):
                raise UserError(f'{what} {path}: {words}')
            return _checksum(step.opt, checkpoint['model'], checkpoint.get('num_classes'), f'{what} {path}')
        except UserError as error:
            advice = 'give another file' if maker is None else anew if lost else \
                'delete it, and the same command makes it again'
            raise _Lost(f'{error}; {advice}') from error
    if lost:
        raise _Lost(f'{maker.what}: {path}: the weights of its best epoch are lost; {anew}')
    with contextlib.suppress(UserError):
        state = load_checkpoint(str(path.with_name(LAST)), '')
        module, identity = (state.get(name) if isinstance(state.get(name), dict) else {}
                            for name in ('module', 'identity'))
        weights = {name[8:]: value for name, value in module.items() if name.startswith('student.')}
        weights = state.get('model', weights)       # older states have no 'model'
        return _checksum(step.opt, weights, identity.get('classes'), what)
    return None


def _is_lost(step):
    """Whether a resumed run could not write the weights of its best epoch again."""
    with contextlib.suppress(UserError):
        return not last_is_best(step, read_run(str(step.folder)))
    return False


def _checksum(opt, weights, classes, what):
    """As train_student.py makes it. Raises UserError where the weights are not those of the teacher's net."""
    classes = SIZES.get(opt.dataset, (classes,))[0]
    if not isinstance(classes, int) or not 0 < classes < 10**5:
        return UNKNOWN
    net = build(opt.model_t, classes, pixels(opt), what)
    load_weights(net, without_prefix(weights, net.state_dict())[0], f'{what}: not the weights of {opt.model_t}')
    return weights_checksum(net)
