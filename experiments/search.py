"""A search: a study for each row and pair of a space, whose trials are runs of the train scripts."""
import contextlib
import copy
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from analysis.runs import read_or_empty
from dataset.parts import has_validation_set
from helper.cli import readable_hours
from helper.errors import UserError, printable
from helper.files import FolderLock, locked

from . import study as studies
from .plan import Planner
from .planned_run import PlannedRun, expected_options
from .progress import DONE, FAILED, LEFT, PRUNED, RUNNING, Progress, Record
from .space import METHOD, ranges_of
from .table_file import ALONE, Pair, Row, Table

STUDY = 'study.log'         # in the folder of a search: the file of Optuna
DEFINITION = 'definition'   # attribute of a study: what decides the results of its trials
ERROR, SECONDS = 'error', 'seconds'     # attributes of a trial: the last lines of its log; how long its epochs took
WARMUP = 1 / 3              # share of the epochs of a trial in which it is not ended early
BROKEN = 3                  # a row whose first BROKEN trials all failed gets no further ones


@dataclass(eq=False)
class Cell:
    """A row and a pair of a space, with its study."""

    row: Row
    pair: Pair
    published: list[dict]       # for each method range name -> published value, as far as the ranges have it
    definition: dict            # what decides the results of its trials
    defaults: dict              # option -> default
    study: object = None        # of Optuna; None: nothing has begun
    runs: dict[int, PlannedRun] = field(default_factory=dict)       # by the number of the trial, as far as planned

    @property
    def name(self) -> str:
        return f'{self.row.label}: {self.pair}'

    def trials(self) -> list:
        """Return the trials of Optuna, also from other processes."""
        return self.study.get_trials(deepcopy=False) if self.study else []


class Search:
    """Gives out the trials of a space, and records their results. Processes on several machines may share it."""

    def __init__(self, table: Table, save: Path, extra_args: list[str], trials: int, has_pruner: bool):
        """trials: of each row and pair. Raises UserError for ranges that a method refuses, and without validation set.
        """
        self.table, self.save, self.logs = table, save, save / 'logs'
        self.n_trials, self.has_pruner = trials, has_pruner
        self.planner = Planner(table, str(save), extra_args)
        self.cells = [cell for pair in table.pairs for row in table.rows if (cell := self._cell(pair, row))]
        self.claims: dict[PlannedRun, tuple] = {}       # run of this process -> (its cell, number, lock)
        self.is_waiting = False                         # for trials of other processes
        self.storage = None                             # of Optuna, once it is open

    # Plan

    def _cell(self, pair, row):
        """Return the cell with its published values; None for one that is left out or has the runs of another pair."""
        if (row.label, str(pair)) in self.table.left_out:
            return None
        row = self.table.cells.get((row.label, str(pair)), row)
        if row.method == ALONE and self._same_student(pair)[0] is not pair:
            return None
        published, definition = [], {part.name: part.text for part in row.ranges}
        for method in row.methods:
            opt = self._plan(pair, row, {METHOD: method}, f'published-{method}').opt
            if not has_validation_set(opt):
                raise UserError(f'{self.table.path}: options: a search needs a validation set, since the test set must '
                                f'not choose; add --val_fraction 0.1')
            values = {part.name: part.find(getattr(opt, part.name)) for part in ranges_of(method, row.ranges)}
            values = {METHOD: method, **values} if len(row.methods) > 1 else values
            published.append({name: value for name, value in values.items() if value is not None})
            definition[f'options of {method}'] = expected_options(opt)
        definition, defaults = json.loads(json.dumps([definition, opt.flags.defaults]))
        return Cell(row, pair, published, definition, defaults)

    def check_ranges(self) -> None:
        """Plan runs with the ends of all ranges. Raises UserError that names the row for values that are refused."""
        planner = self.planner
        for cell in self.cells:
            for method in cell.row.methods:
                parts = ranges_of(method, cell.row.ranges)
                for i in range(max([len(part.ends) for part in parts], default=1)):
                    values = {METHOD: method, **{part.name: part.ends[i % len(part.ends)] for part in parts}}
                    run = self._plan(cell.pair, cell.row, values, f'check-{method}-{i}')
                    if cell.row.method != ALONE:
                        planner.pair_check.check(run.opt, run.label)
        for pair in self.table.pairs:
            planner.check_test_images(pair)

    def _plan(self, pair, row, values, trial, flags=('--no_test',), planner=None):
        """Return the run of a row with these values of its ranges."""
        method, arguments = values.get(METHOD, row.method), self.arguments(row, values)
        row = Row(row.label, method, (*row.flags, *arguments, *flags))
        run = (planner or self.planner).plan_trial(pair, row, trial, self.table.seeds[0])
        run.cells = [(row.label, str(pair))]
        return run

    @staticmethod
    def arguments(row: Row, values: dict) -> list[str]:
        """Return the flags that give the ranges of a row these values, without the method."""
        return [word for part in row.ranges if part.name != METHOD and part.name in values
                for word in part.arguments(values[part.name])]

    def pairs_of(self, cell: Cell) -> list[Pair]:
        """Return the pairs with the results of a cell: several for a student alone, which has no teacher."""
        return self._same_student(cell.pair) if cell.row.method == ALONE else [cell.pair]

    def _same_student(self, pair):
        return [other for other in self.table.pairs if (other.student, other.flags) == (pair.student, pair.flags)]

    def is_published(self, cell: Cell, values: dict) -> bool:
        """Return whether these values are the published ones."""
        method = values.get(METHOD, cell.row.method)
        return expected_options(self.tuned_run(cell, values).opt) == cell.definition[f'options of {method}']

    def run_of(self, cell: Cell, trial) -> PlannedRun:
        """Return the run of a trial."""
        if trial.number not in cell.runs:
            cell.runs[trial.number] = self._plan(cell.pair, cell.row, trial.params, trial.number + 1)
        return cell.runs[trial.number]

    def tuned_run(self, cell: Cell, values: dict, flags: Sequence[str] = ()) -> PlannedRun:
        """Return the run with these values, and further flags, that also measures the test set. Raises UserError."""
        planner = copy.copy(self.planner)
        planner.runs = {}       # forget the runs of earlier best values, which have the same names
        return self._plan(cell.pair, cell.row, values, 'tuned', flags, planner)

    def teacher_runs(self) -> list[PlannedRun]:
        """Return the runs of teachers and auxiliary teachers that the trials need, in the order of training."""
        needed = {teacher.run: None for teacher in [*self.planner.teachers.values(), *self.planner.auxiliaries.values()]
                  if teacher.run}
        return [*needed]

    # Begin

    def open(self, is_new: bool = True) -> None:
        """Open the studies. is_new: make those that are missing. Raises UserError for those of another space."""
        path = self.save / STUDY
        if not is_new and not path.is_file():
            return
        with locked(self.save / 'search'):
            self.storage = studies.open_storage(path)
            known = {study.study_name for study in self.storage.get_all_studies()}
            for cell in self.cells:
                if is_new or cell.name in known:
                    cell.study = studies.open_study(self.storage, cell.name, cell.name not in known)
                    self._check_definition(cell, is_new)

    def _check_definition(self, cell, is_new):
        before = cell.study.user_attrs.get(DEFINITION)
        if before is None:
            if is_new:
                cell.study.set_user_attr(DEFINITION, cell.definition)
        elif differences := _differences(before, cell):
            raise UserError(f'--save_dir {self.save}: holds a search of row {cell.name} with '
                            f'{printable("; ".join(differences[:5]))}; give another --save_dir, or move that one away')

    # Trials

    def left(self, cell: Cell) -> int:
        """Return how many trials of a cell have not begun; 0 if at least BROKEN have ended, and all of them failed."""
        trials = cell.trials()
        retried = studies.retried(trials)
        states = Counter(trial.state.name for trial in trials if trial.number not in retried)
        if states['FAIL'] >= BROKEN and states.total() == states['FAIL']:
            return 0
        return int(max(0, min(self.n_trials, studies.count(cell.row)) - states.total()))

    def retry(self) -> None:
        """Add a trial with the same values for each failed one."""
        with locked(self.save / 'search'):
            for cell in self.cells:
                trials = cell.trials()
                retried = studies.retried(trials)
                for trial in trials:
                    if trial.state.name == 'FAIL' and trial.number not in retried:
                        studies.add_trial(cell.study, cell.row, trial.params, retry_of=trial.number)

    def next_run(self) -> PlannedRun | None:
        """Return a run for this process: of a trial that another process has left, or of a new one; None: no run."""
        with locked(self.save / 'search'):
            self.is_waiting = False
            for cell in self.cells:
                for trial in cell.trials():
                    if trial.state.name == 'RUNNING' and cell.runs.get(trial.number) not in self.claims \
                            and (run := self._claim(cell, trial)):
                        return run
            while cells := [cell for cell in self.cells if self.left(cell)]:
                cell = min(cells, key=lambda cell: len(cell.trials()))
                values = studies.next_values(cell.row, cell.trials(), cell.published,
                                             f'{self.table.seeds[0]}, {cell.name}')
                if run := self._claim(cell, studies.add_trial(cell.study, cell.row, values)):
                    return run
            return None

    def is_over(self) -> bool:
        """Return whether no trial is left or runs."""
        return not any(self.left(cell) or any(trial.state.name == 'RUNNING' for trial in cell.trials())
                       for cell in self.cells)

    def _claim(self, cell, trial):
        """Return the run of a trial, now claimed by this process.

        None if another process has claimed or just ended it, or if its values together are refused: it has failed then.
        """
        try:
            run = self.run_of(cell, trial)
        except UserError as error:
            studies.end(self.storage, cell.study, trial.number, 'FAIL', None, {ERROR: [f'error: {printable(error)}']})
            return None
        lock = FolderLock(self.logs, shared=True, name=f'.{run.name}.lock')
        if not lock.take():
            self.is_waiting = True
            return None
        if cell.trials()[trial.number].state.name != 'RUNNING':
            lock.release()
            return None
        self.claims[run] = cell, trial.number, lock
        return run

    def update(self, progress: dict[PlannedRun, Progress], running: set[PlannedRun]) -> list[PlannedRun]:
        """Record the epochs and the ends of the claimed runs. Returns hopeless ones that still run.

        progress: gets the state PRUNED for those that have ended.
        """
        hopeless = []
        for run, (cell, number, lock) in list(self.claims.items()):
            trial, curve = cell.trials()[number], curve_of(run)
            warmup = math.ceil(WARMUP * run.opt.epochs) if self.has_pruner else None
            is_hopeless = studies.report(self.storage, cell.study, trial, curve, warmup)
            state = progress[run].state
            if is_hopeless and run in running:
                hopeless.append(run)
            elif is_hopeless or state in (DONE, FAILED):
                end = 'PRUNED' if is_hopeless else 'COMPLETE' if state == DONE else 'FAIL'
                studies.end(self.storage, cell.study, number, end, max(curve) if end == 'COMPLETE' else None, {
                    SECONDS: progress[run].seconds, **({ERROR: Record(self.logs, run).last_lines()} if end == 'FAIL'
                                                       else {})})
                progress[run].state = PRUNED if is_hopeless else state
                for file in run.folder.glob('*.pth'):       # nobody needs the weights of a trial
                    file.unlink()
                del self.claims[run]
                lock.release()
        return hopeless

    # Show

    def summary(self, at_once: int = 1) -> str:
        """Return a line such as 'digits: 12 done, 3 ended early, 2 running, 0 failed, 10 left'."""
        count, seconds, left = Counter(), [], 0
        for cell in self.cells:
            trials = cell.trials()
            count.update(trial.state.name for trial in trials)
            seconds += [trial.user_attrs[SECONDS] for trial in trials if trial.user_attrs.get(SECONDS)]
            left += self.left(cell)
        text = f'{self.table.name}: {count["COMPLETE"]} {DONE}, {count["PRUNED"]} {PRUNED}, {count["RUNNING"]} ' \
               f'{RUNNING}, {count["FAIL"]} {FAILED}, {left} {LEFT}'
        unfinished = left + count['RUNNING']
        if unfinished and seconds:
            text += f', at most {readable_hours(mean(seconds) * unfinished / at_once / 3600)} to go'
        return text


def curve_of(run: PlannedRun) -> list[float]:
    """Return the validation accuracies of a run's epochs so far."""
    curve = []
    with contextlib.suppress(KeyError, TypeError, ValueError):
        for epoch in read_or_empty(run.folder / 'history.json', list):
            curve.append(float(epoch['val_acc']))
    return curve


def _differences(before: dict, cell: Cell) -> list[str]:
    """Return how a definition differs from a cell's: 'epochs 4, not 9'. Flags that are new have their default."""
    texts, start = [], 'options of '
    methods, methods_before = ([key.removeprefix(start) for key in definition if key.startswith(start)]
                               for definition in (cell.definition, before))
    if methods != methods_before:
        return [f'methods {", ".join(methods_before)}, not {", ".join(methods)}']
    for key in {**before, **cell.definition}:
        old, new = before.get(key), cell.definition.get(key)
        if not isinstance(old, dict) or not isinstance(new, dict):
            old, new = {key: old}, {key: new}
        texts += [f'{name} {value_before}, not {value}' for name, value in new.items()
                  if (value_before := old.get(name, cell.defaults.get(name))) != value]
    return texts
