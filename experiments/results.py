"""The results of a table so far: a cell for each row and pair, with its trials and the published figure."""
import contextlib
import functools
import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

from analysis.classes import mean_report, shown_classes
from analysis.published import (
    Improvement,
    Published,
    method_key,
    non_default_options,
    published_figures,
    published_improvement,
    relative_improvement,
)
from analysis.runs import ACCURACY_KEYS, chosen_on, have_same_properties
from analysis.statistics import Difference, Mean, difference, weighted_sum
from distiller_zoo import get_method
from helper.errors import UserError
from models.find import build, is_user_file

from .pair_check import pixels
from .planned_run import PlannedRun, expected_options, shell
from .progress import DONE, FAILED, Progress, Record, load_result
from .table_file import ALONE, Pair, Row, Table


@dataclass(eq=False)
class Trial:
    """A run of a cell. result: the value of analysis.runs.read_run, None unless the run is done."""

    run: PlannedRun
    progress: Progress
    record: Record
    result: dict | None

    @property
    def has_failed(self) -> bool:
        return self.progress.state == FAILED

    @property
    def command(self) -> str:
        """The command that finished the run, or that starts it."""
        return self.result and self.result['command'] or shell(self.run.command([]))


@dataclass(eq=False)
class Cell:
    """The results of a row for a pair. Accuracies are top-1 in percent on the test set; epoch: 'best' or 'last'."""

    row: Row
    pair: Pair
    trials: list[Trial]
    published: Published | None

    @cached_property
    def results(self) -> list[dict]:
        """The results of the finished trials; none if they cannot be averaged.

        This is so if their data differ, or the sets that chose their best epochs.
        """
        results = [trial.result for trial in self.trials if trial.result]
        is_same = all(have_same_properties(*pair) for pair in itertools.combinations(results, 2))
        return results if is_same and len({result['chosen_on'] for result in results}) == 1 else []

    @cached_property
    def class_report(self) -> dict | None:
        """Return the mean figures of each class in the best epoch; None unless all finished trials have them."""
        return mean_report([result['class_report'] for result in self.results])

    def mean(self, epoch: str) -> float | None:
        return mean(result[ACCURACY_KEYS[epoch]] for result in self.results) if self.results else None

    def deviation(self, epoch: str) -> float | None:
        """Return the sample standard deviation over the trials; None for less than two."""
        return stdev(result[ACCURACY_KEYS[epoch]] for result in self.results) if len(self.results) > 1 else None

    def average(self, epoch: str) -> Mean | None:
        """Return the mean with its deviation and the number of trials; None without a finished trial."""
        return Mean(self.mean(epoch), self.deviation(epoch), len(self.results)) if self.results else None

    def difference(self, epoch: str) -> Difference | None:
        """Return our mean minus the published one; None without one, or if that is of the other epoch."""
        if not self.results or not self.published or not self.published.compares_with(epoch):
            return None
        return difference(self.average(epoch), self.published.average)


@dataclass
class TableResults:
    """The cells of a table, and its teachers."""

    table: Table
    cells: dict[tuple[str, str], Cell]      # by (row label, pair)
    teachers: list[Trial]                   # and auxiliary teachers
    epoch: str = 'best'                     # of the accuracies in the report: 'best' or 'last'

    def cell(self, row: Row, pair: Pair) -> Cell | None:
        """Return the cell; None if the table leaves it out."""
        return self.cells.get((row.label, str(pair)))

    def pair_cells(self, pair: Pair) -> list[Cell]:
        """Return the cells of a pair that have a mean, in the order of the rows."""
        return [cell for row in self.table.rows if (cell := self.cell(row, pair)) and cell.results]

    def first_row(self, method: str) -> Row | None:
        """Return the first row of a method, ALONE or a name; None without one."""
        return next((row for row in self.table.rows if row.method == method), None)

    @property
    def has_published(self) -> bool:
        return any(cell.published for cell in self.cells.values())

    @property
    def headline_row(self) -> Row | None:
        return next((row for row in self.table.rows if row.label == self.table.headline), None)

    def gain(self, cell: Cell, over: Row | None, epoch: str) -> Difference | None:
        """Return the mean of a cell minus that of row `over` for the same pair; None unless both have one."""
        other = over and self.cell(over, cell.pair)
        if not other or other is cell or not other.results or not cell.results:
            return None
        return difference(cell.average(epoch), other.average(epoch))

    def mean_gain(self, row: Row, over: Row | None, epoch: str) -> tuple[Difference, int] | None:
        """Return (the mean over the pairs of row minus `over`, number of these pairs); None without such a pair.

        A run that two pairs share, as a student alone does, is one term of sigma.
        """
        cells = [(cell, self.cell(over, cell.pair)) for pair in self.table.pairs if (cell := self.cell(row, pair))
                 and over and self.gain(cell, over, epoch)]
        terms: dict[tuple, list] = {}       # runs of a mean -> [weight, mean]
        for both in cells:
            for sign, cell in zip((1, -1), both, strict=True):
                term = terms.setdefault(tuple(map(id, cell.results)), [0, cell.average(epoch)])
                term[0] += sign / len(cells)
        return (weighted_sum(terms.values()), len(cells)) if cells else None

    def trials(self) -> list[Trial]:
        """Return the trials of all cells and the teachers, each once."""
        return [*dict.fromkeys([trial for cell in self.cells.values() for trial in cell.trials] + self.teachers)]

    @property
    def chosen_on(self) -> str:
        """The split that chose the best epochs, see analysis.runs.chosen_on."""
        return chosen_on(trial.result for trial in self.trials() if trial.result)

    def is_highest(self, cell: Cell, epoch: str) -> bool:
        """Return whether the mean of this cell, to two digits, is higher than all others of its pair."""
        if not cell.results:
            return False
        means = [round(other.mean(epoch), 2) for other in self.pair_cells(cell.pair)]
        return means.count(max(means)) == 1 and round(cell.mean(epoch), 2) == max(means)

    def best(self, pair: Pair, epoch: str) -> Cell | None:
        """Return the highest cell of a pair; None if it has less than two, or if two are equal to two digits."""
        cells = self.pair_cells(pair)
        return next((cell for cell in cells if len(cells) > 1 and self.is_highest(cell, epoch)), None)

    def near_best(self, pair: Pair, epoch: str) -> list[Cell]:
        """Return the cells of a pair that are not clearly below its highest one, without that one."""
        best = self.best(pair, epoch)
        return [cell for cell in self.pair_cells(pair) if best and cell is not best
                and not difference(best.average(epoch), cell.average(epoch)).is_clear]

    def teacher_result(self, pair: Pair) -> dict | None:
        """Return the run of the pair's teacher; None unless it was trained as a run of the table."""
        return next((trial.result for trial in self.teachers if trial.result
                     and trial.result['model'] == pair.teacher and not trial.result['teacher']), None)

    def teacher(self, pair: Pair, epoch: str) -> float | None:
        """Return the accuracy of the pair's teacher; None unless it was trained as a run of the table."""
        result = self.teacher_result(pair)
        return result and result[ACCURACY_KEYS[epoch]]

    def parameters(self, pair: Pair) -> tuple[int | None, int | None]:
        """Return the numbers of parameters of the pair's student, as its first row deploys it, and of its teacher."""
        cells, teacher = self.pair_cells(pair), self.teacher_result(pair)
        student = cells[0].results[0]['parameters'] if cells else None
        if teacher:
            return student, teacher['parameters']
        run = next((trial.run for cell in cells for trial in cell.trials if hasattr(trial.run.opt, 'distill')), None)
        classes = cells[0].results[0]['properties'].get('classes') if cells else None
        return student, count_parameters(run.opt.model_t, classes, pixels(run.opt)) if run and classes else None

    @property
    def seconds(self) -> float:
        """The time of all runs so far."""
        return sum(trial.progress.seconds for trial in self.trials())

    def classes(self, pair: Pair) -> tuple[list[Cell], list[dict]]:
        """Return (the pair's cells that have figures of each class, the classes of a table).

        A class has 'name', 'images', 'recall' (the mean of the cells), and 'each' (its recall in each cell).
        """
        cells = [cell for row in self.table.rows if (cell := self.cell(row, pair)) and cell.class_report]
        average = mean_report([cell.class_report for cell in cells])
        if average is None:
            return [], []
        for i, row in enumerate(average['classes']):
            row['each'] = [cell.class_report['classes'][i]['recall'] for cell in cells]
        return cells, shown_classes(average['classes'])

    def improvement(self, epoch: str) -> dict[str, tuple[Improvement, float | None]]:
        """Return row label -> (average relative improvement of the headline row over it, the published one in percent).

        If several rows train students alone, the first counts.
        """
        table = self.table
        if table.headline is None:
            return {}
        methods = {row.label: row.method for row in table.rows}
        top1 = {}
        for (label, _), cell in self.cells.items():
            if cell.results:
                key = ('', cell.pair.student, 'alone') if methods[label] == ALONE else \
                    (cell.pair.teacher, cell.pair.student, label)
                top1.setdefault(key, cell.mean(epoch))
        headline = methods[table.headline]
        has_published = table.sources == (get_method(headline).spec.title,)
        percent = published_improvement(headline, epoch) if has_published else {}
        return {label: (improvement, float(percent[methods[label]]) if methods[label] in percent else None)
                for label, improvement in relative_improvement(top1, table.headline).items()}


def read_results(table: Table, progress: dict[PlannedRun, Progress], logs: Path,
                 epoch: str | None = None) -> TableResults:
    """Read the results of a table so far. epoch: 'best' or 'last'; None: the epoch of the published figures."""
    trials, cells = {}, {}
    for run, now in progress.items():
        trials[run] = Trial(run, now, Record(logs, run), load_result(run) if now.state == DONE else None)
    for pair in table.pairs:
        for row in table.rows:
            key = row.label, str(pair)
            if cell_trials := [trial for run, trial in trials.items() if key in run.cells]:
                cells[key] = Cell(row, pair, cell_trials, published_for(table, pair, cell_trials[0].run.opt))
    return TableResults(table, cells, [trial for run, trial in trials.items() if not run.cells],
                        epoch or epoch_of_published(cells.values()))


@functools.cache
def count_parameters(net: str, classes: int, image_size: int) -> int | None:
    """Return the number of parameters of a net; None if it cannot be built here, or is in a user's file."""
    if is_user_file(net):
        return None
    with contextlib.suppress(UserError, ImportError):
        return sum(parameter.numel() for parameter in build(net, classes, image_size).parameters())
    return None


def epoch_of_published(cells) -> str:
    """Return 'last' if all published figures of a known epoch are of the last one, else 'best'."""
    known = {cell.published.epoch for cell in cells if cell.published} - {'unknown'}
    return 'last' if known == {'last'} else 'best'


def published_for(table: Table, pair: Pair, opt) -> Published | None:
    """Return the published figure for a run of this pair with these options."""
    if not table.sources:
        return None
    key = ('', pair.student, ALONE) if not hasattr(opt, 'distill') else \
        (pair.teacher, pair.student, method_key(opt.distill, non_default_options({**vars(opt)}, expected_options(opt))))
    return published_figures(opt.dataset, *table.sources).get(key)
