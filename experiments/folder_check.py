"""Check the folder of a table before its runs start: other runs, another teacher, other data, damaged files."""
import contextlib
import os
import sys
from pathlib import Path

from analysis.run_checkpoint import RunCheckpoint
from analysis.runs import DATA_PROPERTIES, read_or_empty, read_run
from helper.checkpoint import load_checkpoint, load_weights, weights_checksum
from helper.cli import current_options
from helper.errors import UserError, printable
from helper.files import read_json, write_json
from helper.state import LAST, PREVIOUS
from models.classes import find_classifier
from models.find import build
from models.foreign import without_prefix

from .pair_check import SIZES, pixels
from .planned_run import PlannedRun, expected_options
from .progress import last_is_best, load_result
from .table_file import Table

CHECKSUM = 'teacher (checksum)'     # key of a student's parameters.json: the weights of its teacher
FRACTION_PROPERTIES = 'training images', 'labels (checksum)'     # they depend on these fractions
OWNER = 'table.json'    # in the folder of a table: the table's name and file, and the flags that every run has
UNKNOWN = 'unknown'     # checksum of a net whose number of classes, or of loaded weights, only a run tells


class _Damaged(UserError):
    """A file is damaged or missing; the other runs can still be reported."""


def check(table: Table, save: Path, runs: list[PlannedRun], read_only: bool = False) -> None:
    """Raise UserError for a folder of another table, for runs with other options, data or another teacher, and for
    damaged or missing files. read_only: nothing will start, so print a line for such files."""
    def report_damage(check_part, *arguments):
        try:
            check_part(*arguments)
        except _Damaged as error:
            if not read_only:
                raise
            print(printable(error), file=sys.stderr)
    try:
        owner, _ = owner_of(save)
        if owner not in (None, table.owner):
            raise UserError(f'--save_dir {save}: is the folder of the table {owner}, whose report and logs this one '
                            f'would replace; give each table its own folder, as save/{table.name}')
        for run in runs:
            report_damage(_check_options, run)
            report_damage(_check_last, run)
        check_data(runs)
        report_damage(_check_teachers, runs, read_only)
    except OSError as error:
        raise UserError(f'--save_dir {save}: cannot be read ({error.strerror}: {error.filename}); give a folder that '
                        f'you can read and write, with a shorter name if it is too long') from error


def owner_of(save: Path) -> tuple[str | None, str | None]:
    """Return the name and the file of the folder's table; None for what is not noted, or for a file that is gone."""
    note = read_or_empty(save / OWNER, dict)
    name, file = (note[key] if isinstance(note.get(key), str) else None for key in ('table', 'file'))
    return name, file if file and os.path.isfile(file) else None


def flags_of(save: Path) -> list[str]:
    """Return the arguments that the last command gave every run of the folder; none if they are not noted."""
    flags = read_or_empty(save / OWNER, dict).get('flags')
    return flags if isinstance(flags, list) and all(isinstance(flag, str) for flag in flags) else []


def note_owner(table: Table, save: Path, extra_args: list[str]) -> None:
    """Note the table's name and file in its folder, and the flags of every run."""
    write_json(save / OWNER, {'table': table.owner, 'file': os.path.abspath(table.path), 'flags': extra_args})


def option_differences(run: PlannedRun) -> list[str]:
    """Return how the options of the run in the folder differ from the planned ones: 'kd_T 4.0, not 2.0'.

    Raises UserError for a damaged parameters.json.
    """
    path, advice = run.folder / 'parameters.json', 'delete it, and the same command writes it again'
    if not path.exists():
        return []
    try:
        parameters = read_json(path, f'{run.label}: {path}')
    except UserError as error:
        raise _Damaged(f'{error}; {advice}') from error
    if not isinstance(parameters, dict) or not parameters:
        raise _Damaged(f'{run.label}: {path}: holds no options; {advice}')
    parameters = {**run.opt.flags.defaults, **current_options(parameters)}
    differences = [f'{name} {parameters.get(name)}, not {value}'
                   for name, value in expected_options(run.opt).items() if parameters.get(name) != value]
    teacher = getattr(run.opt, 'path_t', None)
    if teacher and not _has_teacher(parameters, teacher):
        differences.append(f'the teacher {parameters.get("path_t")}, not {teacher}')
    return differences


def _check_options(run):
    if differences := option_differences(run):
        raise UserError(f'{run.label}: {run.folder} holds a run with {"; ".join(differences[:5])}; move it away, or '
                        f'give another --save_dir')


def _has_teacher(parameters, path):
    """Return whether a run has this teacher; the table's folder may have been moved."""
    return Path(str(parameters.get('path_t'))).parts[-2:] == Path(path).parts[-2:]


def _check_last(run):
    """Raise _Damaged for an unfinished run without last.pth."""
    has_begun = any((run.folder / name).exists()
                    for name in ('history.json', 'test_best_metrics.json', run.checkpoint.name))
    if has_begun and not any((run.folder / name).exists() for name in (LAST, PREVIOUS)) and not load_result(run):
        raise _Damaged(f'{run.label}: {run.folder}: the run there cannot continue, because its {LAST} is lost; move '
                       f'the folder away, and the same command trains it again')


def check_data(runs: list[PlannedRun]) -> None:
    """Raise UserError unless all runs so far, also the teachers', have the same data."""
    known = {}      # (data set, its folder, property, fractions of the images) -> (value, folder of the first run)
    for run in runs:
        parameters = read_or_empty(run.folder / 'parameters.json', dict)
        for name in DATA_PROPERTIES:
            if name in parameters:
                fractions = (run.opt.train_fraction, run.opt.val_fraction) if name in FRACTION_PROPERTIES else ()
                value, first = known.setdefault((run.opt.dataset, run.opt.data_dir, name, fractions),
                                                (parameters[name], run.folder))
                if parameters[name] != value:
                    raise UserError(f'{run.label}: {run.folder} holds a run on other data than {first} ({name} '
                                    f'{parameters[name]} and {value}); the data have changed in between: move the runs '
                                    f'on the other data away, or give another --save_dir')


def _check_teachers(runs, read_only):
    """Check that each student has learnt from its current teacher, and that the teachers' checkpoints are whole."""
    checksums, replaced, missing = {}, [], []
    for run in runs:
        path = getattr(run.opt, 'path_t', None)
        parameters = read_or_empty(run.folder / 'parameters.json', dict)
        learnt_from = parameters.get(CHECKSUM) if path and _has_teacher(parameters, path) else None
        if path and path not in checksums and (learnt_from is not None or not read_only):
            checksums[path] = _teacher_checksum(run)
        if learnt_from is not None and checksums[path] not in (learnt_from, UNKNOWN):
            (missing if checksums[path] is None else replaced).append(run)
    for students, error, text in (
            (replaced, UserError, 'learnt from another teacher than {}; move {} away, or put that teacher back'),
            (missing, _Damaged, 'learnt from a teacher that is no longer there, {}; move {} away, or put the teacher '
                                'back')):
        if students:
            first, others = students[0], len(students) - 1
            raise error(f'{first.label}: {first.folder} '
                        + (f'and {others} more hold runs that ' if others else 'holds a run that ')
                        + text.format(first.opt.path_t, 'them' if others else 'it'))


def _teacher_checksum(run):
    """Return the checksum of a student's teacher, or of the net that its resumed run will save; None without both."""
    path, teacher_run = Path(run.opt.path_t), run.teacher_run
    source = f'{teacher_run.label}:' if teacher_run else f'{run.label}: teacher'
    is_lost = teacher_run is not None and _is_lost(teacher_run)
    advice = f'move {path.parent} away, with those of its students, and the same command trains them again' \
        if is_lost else 'delete it, and the same command makes it again' if teacher_run else 'give another file'
    if path.is_file():
        try:
            run_checkpoint = RunCheckpoint(source, path, {})
            checkpoint = run_checkpoint.state
            if teacher_run and load_result(teacher_run) and (difference := run_checkpoint.metrics_difference()):
                raise UserError(f'{source} {path}: {difference}')
            return _checksum(run.opt, checkpoint['model'], checkpoint.get('num_classes'), f'{source} {path}')
        except UserError as error:
            raise _Damaged(f'{error}; {advice}') from error
    if is_lost:
        raise _Damaged(f'{source} {path}: the weights of its best epoch are lost; {advice}')
    with contextlib.suppress(UserError):
        state = load_checkpoint(str(path.with_name(LAST)), '')
        module, identity = (state.get(name) if isinstance(state.get(name), dict) else {}
                            for name in ('module', 'identity'))
        weights = {name[8:]: value for name, value in module.items() if name.startswith('student.')}
        weights = state.get('model', weights)       # older states have no 'model'
        return _checksum(run.opt, weights, identity.get('classes'), source)
    return None


def _is_lost(run):
    """Return whether a resumed run could not write the weights of its best epoch again."""
    with contextlib.suppress(UserError):
        return not last_is_best(run, read_run(str(run.folder)))
    return False


def _checksum(opt, weights, num_classes, source):
    """Return the checksum that train_student.py records; UNKNOWN for a teacher whose classifier it leaves out.

    Raises UserError for weights of another net.
    """
    num_classes = SIZES.get(opt.dataset, (num_classes,))[0]
    if not isinstance(num_classes, int) or not 0 < num_classes < 10**5:
        return UNKNOWN
    net = build(opt.model_t, num_classes, pixels(opt), source)
    weights, _ = without_prefix(weights, net.state_dict())
    missing = net.state_dict().keys() - weights.keys()
    if opt.teacher_head or (missing and missing <= {*find_classifier(net, num_classes, source)}):
        return UNKNOWN
    load_weights(net, weights, f'{source}: not the weights of {opt.model_t}')
    return weights_checksum(net)
