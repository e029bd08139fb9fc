"""Plan the runs of a table: the command and folder of each run, and the run whose checkpoint it needs."""
import contextlib
import io
import itertools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from dataset import dataset_key, make_pipeline, source_dict
from distiller_zoo import get_method
from helper.cli import values
from helper.errors import UserError, printable
from helper.run_folder import RunPaths, folder_name
from models.find import check_name, is_user_file
from models.load import open_checkpoint
from models.recognise import find_architecture
from models.start import Start
from option_checkpoints import TEST_PREPROCESSING, set_preprocessing, start_inputs
from options import student_options, teacher_options, with_recipe

from .pair_check import PairCheck, pixels
from .planned_run import PlannedRun
from .table_file import ALONE, Pair, Row, Table
from .table_flags import check_flags, check_teachers_accept


@dataclass
class _Teacher:
    """A teacher's checkpoint: written by a run of the table, or downloaded."""

    name: str
    label: str
    checkpoint: Path
    run: PlannedRun | None = None
    saved: dict = field(default_factory=dict)       # the metadata of a downloaded checkpoint

    def net(self, image_size: int) -> str:
        """Return the net in the checkpoint, as train_student.py names it. Raises UserError for another net."""
        if self.run:
            return self.run.net
        net = find_architecture(str(self.checkpoint), self.saved, f'{self.label}:')
        if check_name(net, image_size, f'{self.label}: {self.checkpoint}: holds') != \
                check_name(self.name, image_size, self.label):
            raise UserError(f'{self.label}: {self.checkpoint}: holds a {printable(net)}; let fetched name a checkpoint '
                            f'of {self.name}')
        return net


def plan_runs(table: Table, save_dir: str, extra_args: list[str]) -> list[PlannedRun]:
    """Return the checked runs of a table in the order of training: teachers, all first trials, all second trials, ...

    extra_args: the last arguments of every command. Raises UserError that names the file and the row.
    """
    planner = Planner(table, save_dir, extra_args)
    for pair in table.pairs:
        for row in table.rows:
            if (row.label, str(pair)) not in table.left_out:
                planner.add_cell(pair, table.cells.get((row.label, str(pair)), row))
        planner.check_test_images(pair)
    cache_errors = [*planner.cache_errors.values()]
    if cache_errors and all(cache_errors):
        raise UserError(f'{table.path}: teacher_cache: no run of the table can use it ({cache_errors[-1]}); leave it '
                        f'out')
    return sorted(planner.runs.values(), key=lambda run: run.trial)


class Planner:
    """Collects the runs of a table. Cells with the same command share a run."""

    def __init__(self, table, save_dir, extra_args):
        self.table, self.extra_args = table, extra_args
        self.last_arguments = ['--save_dir', save_dir, '--resume', 'auto', *extra_args]
        self.runs: dict[Path, PlannedRun] = {}          # by folder
        self.teachers: dict[str, _Teacher] = {}
        self.auxiliaries: dict[str, _Teacher] = {}      # by the name of their teacher
        self.start_inputs: dict[tuple, dict] = {}       # by net, --pretrained and --initial_checkpoint
        self.cache_errors: dict[str, str | None] = {}   # label of runs -> why they cannot use teacher_cache
        self.pair_check = PairCheck()
        for key in ('options', 'teacher_options', 'student_options'):
            check_flags(getattr(table, key), f'{table.path}: {key}')
        check_flags(extra_args, 'the command line')

    def add_cell(self, pair: Pair, row: Row) -> None:
        """Plan the trials of a cell, one for each seed of the table."""
        label = self.label(pair, row)
        check_flags([*row.flags, *pair.flags], label)
        for trial, seed in enumerate(self.table.seeds, 1):
            run = self.plan_trial(pair, row, trial, seed)
            if any(other == str(pair) for _, other in run.cells):
                raise UserError(f'{label}: is the same run as row {run.cells[0][0]}; give each once')
            run.cells.append((row.label, str(pair)))

    def plan_trial(self, pair: Pair, row: Row, trial: int | str, seed: int) -> PlannedRun:
        """Return the run of a trial, whose number or name is a part of its folder's name."""
        flags = [*self.table.options, *self.table.student_options, *pair.flags, *row.flags]
        plan = self._plan_alone if row.method == ALONE else self._plan_distilled
        return plan(pair, row, flags, trial, seed, self.label(pair, row))

    def label(self, pair: Pair, row: Row) -> str:
        """Return the label of a cell in messages."""
        return f'{self.table.path}: row {row.label}, {pair}'

    def check_test_images(self, pair):
        """Raise UserError if a student alone would read other test images than one with a teacher, by default values.
        """
        runs = [run for run in self.runs.values() if str(pair) in {other for _, other in run.cells}
                and dataset_key(run.opt.dataset) in source_dict]
        for alone, taught in itertools.product(runs, runs):
            if not hasattr(taught.opt, 'distill') or hasattr(alone.opt, 'distill'):
                continue
            inputs, inputs_t = (self._inputs(run.opt) for run in (alone, taught))
            for option, key, where in (
                    ('image_size', 'size', 'options'),
                    *((name, name, f'student_options, or --{name} {usual}, which runs of earlier versions have')
                      for name, usual in TEST_PREPROCESSING.items())):
                is_given = option in alone.opt.flags.given | taught.opt.flags.given
                if not is_given and inputs[key] != inputs_t[key]:
                    raise UserError(f'{alone.label}: its images would have {option} {inputs[key]}, but those of the '
                                    f'teacher {pair.teacher} have {inputs_t[key]}; give --{option} {inputs_t[key]} in '
                                    f'{where}')

    def _plan_alone(self, pair, row, flags, trial, seed, label):
        name = f'{folder_name(pair.student)}-{_slug(row.label)}-{trial}'
        same_name = self._named(name)
        if same_name and all(other != str(pair) for _, other in same_name.cells):   # another pair has other flags
            name = f'{folder_name(pair.teacher)}-{name}'
        return self._plan_teacher(pair.student, flags, f'{trial}{_suffix(row)}', seed, name, label)

    def _plan_distilled(self, pair, row, flags, trial, seed, label):
        teacher, suffix = self._teacher(pair.teacher), _suffix(row)
        if get_method(row.method).spec.auxiliary_teacher and self.table.auxiliary:
            teacher, suffix = self._auxiliary(teacher), f'{suffix}_{folder_name(pair.teacher)}'
        name = f'{folder_name(pair.teacher)}-{folder_name(pair.student)}-{_slug(row.label)}-{trial}'
        run = self._plan_student(pair.student, row.method, flags, teacher, f'{trial}{suffix}', seed, name, label)
        if trial == 1:
            self.pair_check.check(run.opt, label)
        return run

    def _teacher(self, name):
        if name not in self.teachers:
            label = f'{self.table.path}: teacher {name}'
            fetched = self.table.fetched and Path(self.table.fetched.replace('{teacher}', name))
            if fetched and os.path.isfile(fetched):
                checkpoint = open_checkpoint(str(fetched), label)
                saved = {key: checkpoint[key] for key in ('arch', 'inputs') if key in checkpoint}
                self.teachers[name] = _Teacher(name, label, fetched, saved=saved)
            else:
                run = self._plan_teacher(name, [*self.table.options, *self.table.teacher_options], '0',
                                         self.table.teacher_seed, f'teacher-{folder_name(name)}', label)
                self.teachers[name] = _Teacher(name, label, run.checkpoint, run)
        return self.teachers[name]

    def _auxiliary(self, teacher):
        if teacher.name not in self.auxiliaries:
            net, method = self.table.auxiliary.label, self.table.auxiliary.method
            label = f'{self.table.path}: auxiliary teacher {net}, taught by {teacher.name}'
            flags = [*self.table.options, *self.table.student_options, *self.table.auxiliary.flags]
            name = f'auxiliary-{folder_name(teacher.name)}-{folder_name(net)}'
            run = self._plan_student(net, method, flags, teacher, 'auxiliary', self.table.teacher_seed, name, label)
            self.pair_check.check(run.opt, label)
            self.auxiliaries[teacher.name] = _Teacher(net, label, run.checkpoint, run)
        return self.auxiliaries[teacher.name]

    def _plan_teacher(self, net, flags, trial, seed, name, label):
        arguments = ['--model', net, *flags, '--trial', trial, '--seed', str(seed), *self.last_arguments]
        opt = self._parse(teacher_options, arguments, label)
        self._settle(opt, label)
        return self._add(name, label, 'train_teacher.py', arguments, opt, RunPaths.of_teacher(opt), opt.model)

    def _plan_student(self, net, method, flags, teacher, trial, seed, name, label):
        model_t = ['--model_t', teacher.name] if is_user_file(teacher.name) else []
        arguments = ['--path-t', str(teacher.checkpoint), *model_t, '--model_s', net, '--distill', method, *flags,
                     '--trial', trial, '--seed', str(seed), *self.last_arguments]
        opt = self._parse(student_options, arguments, label)
        self._settle(opt, label, teacher)
        if self.table.teacher_cache and self.cache_errors.get(label) is None:
            try:
                with_cache = student_options([*arguments, *self.table.teacher_cache])
                self._settle(with_cache, label, teacher)
                opt = with_cache
                arguments += self.table.teacher_cache
                self.cache_errors[label] = None
            except UserError as error:      # the method or a flag such as --mixup does not allow it
                self.cache_errors[label] = f'{label}: {error}'
        opt.model_t = teacher.net(pixels(opt))
        return self._add(name, label, 'train_student.py', arguments, opt, RunPaths.of_student(opt), opt.model_s,
                         teacher.run)

    def _settle(self, opt, label, teacher=None):
        """Take the preprocessing from the initial weights or the teacher, as the run itself does."""
        try:
            start = Start('the initial weights', {}, self._start_inputs(opt))
            checkpoint_t = teacher and {'inputs': self._inputs(teacher.run.opt) if teacher.run else
                                        teacher.saved.get('inputs')}
            with contextlib.redirect_stdout(io.StringIO()):
                set_preprocessing(opt, start, checkpoint_t, resumes=False)
        except UserError as error:
            raise UserError(f'{label}: {error}') from error

    def _inputs(self, opt):
        """The preprocessing in the checkpoint of a run, without the colours."""
        pipeline = make_pipeline(opt, self._start_inputs(opt))
        return {key: getattr(pipeline, key) for key in ('size', 'fit', 'interpolation', 'crop_pct')}

    def _start_inputs(self, opt):
        key = opt.model_s if 'model_s' in opt else opt.model, opt.pretrained, opt.initial_checkpoint
        if key not in self.start_inputs:
            self.start_inputs[key] = start_inputs(opt)
        return self.start_inputs[key]

    def _parse(self, options, arguments, label):
        """Return the options. If they are right without the flags of the command line, the error blames those."""
        try:
            check_flags(with_recipe(arguments)[:-len(arguments)], '--recipe')
            return options(arguments)
        except (UserError, ValueError) as error:
            if self.extra_args:
                with contextlib.suppress(UserError, ValueError):
                    options(arguments[:-len(self.extra_args)])
                    label = 'the command line'
                if options is teacher_options:
                    check_teachers_accept(self.extra_args, 'the command line')
            raise UserError(f'{label}: {error}') from error

    def _add(self, name, label, script, arguments, opt, paths, net, teacher_run=None):
        """Return the run of these options, which is new unless its folder is planned already."""
        folder = paths.folder
        run = self.runs.get(folder)
        if run is None:
            if same_name := self._named(name):
                raise UserError(f'{label}: its log would be that of {same_name.short_label}; give the row another name')
            trial = int(re.match(r'\d*', opt.trial)[0] or 0)
            run = self.runs[folder] = PlannedRun(name, label, script, arguments, opt, folder, paths.best,
                                                 check_name(net, pixels(opt), label), trial, teacher_run)
            if teacher_run:
                teacher_run.has_students = True
        elif values(run.opt) != values(opt):
            raise UserError(f'{label}: would be written into {folder}, as {run.short_label} with other flags; '
                            + ('give the row another name' if run.name == name else 'leave one of the two out'))
        return run

    def _named(self, name):
        return next((run for run in self.runs.values() if run.name == name), None)


def _suffix(row: Row) -> str:
    """Return the suffix of the trial's name for flags of the row that the folder's name does not show."""
    shown = ('-r', '-a', '-b', '--gamma', '--alpha', '--beta')
    flags = [flag.split('=')[0] for flag in row.flags if flag.startswith('-') and not re.match(r'-[\d.]', flag)]
    return '' if {*flags} <= {*shown} else f'_{_slug(row.label)}'


def _slug(label):
    """Return a row's label as a part of a file name."""
    return re.sub(r'[^\w.+-]+', '_', label)[:40]
