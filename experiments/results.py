"""What a table has found so far: a cell for each row and pair, with its trials and the published figure."""
import itertools
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

from analysis.published import (
    Improvement,
    Published,
    method_key,
    non_default_options,
    published_figures,
    published_improvement,
    relative_improvement,
)
from analysis.runs import ACCURACY_KEYS, have_same_data
from distiller_zoo import get_method

from .plan import Step, expected
from .progress import DONE, FAILED, Progress, Record, result
from .table_file import ALONE, Pair, Row, Table


@dataclass(eq=False)
class Trial:
    """One run of a cell; run: what analysis.runs.read_run gives, where it is done."""

    step: Step
    progress: Progress
    log: Path
    run: dict | None
    last_lines: list[str] = field(default_factory=list)     # of the log, where it failed


@dataclass(eq=False)
class Cell:
    """A row's result for a pair. Accuracies are top-1 in percent, of the test set; epoch: 'best' or 'last'."""

    row: Row
    pair: Pair
    trials: list[Trial]
    published: Published | None

    @cached_property
    def runs(self) -> list[dict]:
        """The runs of the finished trials; none if their data differ, since their mean would be meaningless."""
        runs = [trial.run for trial in self.trials if trial.run]
        return runs if all(have_same_data(*pair) for pair in itertools.combinations(runs, 2)) else []

    def accuracies(self, epoch: str) -> list[float]:
        """The accuracy of each finished trial."""
        return [run[ACCURACY_KEYS[epoch]] for run in self.runs]

    def mean(self, epoch: str) -> float | None:
        return mean(self.accuracies(epoch)) if self.runs else None

    def deviation(self, epoch: str) -> float | None:
        """The standard deviation over the trials, of a sample."""
        return stdev(self.accuracies(epoch)) if len(self.runs) > 1 else None

    def difference(self, epoch: str) -> float | None:
        """Our mean minus the published one; None if there is none, or if it is known to be of the other epoch."""
        if not self.runs or not self.published or not self.published.compares_with(epoch):
            return None
        return self.mean(epoch) - self.published.top1

    def in_deviations(self, epoch: str) -> float | None:
        """The difference in standard deviations of one trial (the root mean square of our deviation and theirs)."""
        difference = self.difference(epoch)
        known = [d for d in (self.deviation(epoch), self.published and self.published.deviation) if d is not None]
        if difference is None or not any(known):
            return None
        return difference / mean(d * d for d in known) ** 0.5

    @property
    def is_mixed(self) -> bool:
        """Whether its trials have different data."""
        return not self.runs and any(trial.run for trial in self.trials)

    @property
    def missing(self) -> list[Trial]:
        return [trial for trial in self.trials if not trial.run]


@dataclass
class Found:
    """All cells of a table, and its teachers."""

    table: Table
    cells: dict[tuple[str, str], Cell]      # (row's label, pair)
    others: list[Trial]                     # teachers and auxiliary teachers
    epoch: str = 'best'                     # whose accuracies the report shows, 'best' or 'last'

    def cell(self, row: Row, pair: Pair) -> Cell | None:
        """None where the table leaves it out."""
        return self.cells.get((row.label, str(pair)))

    def trials(self) -> list[Trial]:
        """The trials of all cells and the teachers, each once."""
        return [*dict.fromkeys([trial for cell in self.cells.values() for trial in cell.trials] + self.others)]

    def is_highest(self, cell: Cell, epoch: str) -> bool:
        """Whether this mean is the only highest one of its pair, to two digits."""
        if not cell.runs:
            return False
        shown = [f'{other.mean(epoch):.2f}' for other in self.cells.values() if other.pair is cell.pair and other.runs]
        own = f'{cell.mean(epoch):.2f}'
        return own == max(shown, key=float) and shown.count(own) == 1

    def teacher(self, pair: Pair, epoch: str) -> float | None:
        """The accuracy of a pair's teacher, where it was trained here."""
        return next((trial.run[ACCURACY_KEYS[epoch]] for trial in self.others if trial.run
                     and trial.run['model'] == pair.teacher and not trial.run['teacher']), None)

    def improvement(self, epoch: str) -> dict[str, tuple[Improvement, float | None]]:
        """row -> (average relative improvement of the table's headline row over it, the published one in percent)."""
        table = self.table
        if table.headline is None:
            return {}
        top1 = {}
        for (label, _), cell in self.cells.items():
            alone = cell.row.method == ALONE
            if cell.runs:
                # Of several rows alone, the first one.
                top1.setdefault(('' if alone else cell.pair.teacher, cell.pair.student, 'alone' if alone else label),
                                cell.mean(epoch))
        found = relative_improvement(top1, table.headline)
        ours = next(row.method for row in table.rows if row.label == table.headline)
        theirs = published_improvement(ours, epoch) if table.sources == (get_method(ours).spec.title,) else {}
        by_label = {row.label: row.method for row in table.rows}
        return {label: (improvement, float(theirs[by_label[label]]) if by_label[label] in theirs else None)
                for label, improvement in found.items()}


def collect(table: Table, steps: list[Step], logs: Path, now: dict[Step, Progress], epoch: str | None = None) -> Found:
    """Read the runs of a table so far. epoch: 'best' or 'last'; None: the epoch of the published figures."""
    trials = {step: _trial(step, now[step], logs) for step in steps}
    cells = {}
    for pair in table.pairs:
        for row in table.rows:
            own = [trial for step, trial in trials.items() if (row.label, str(pair)) in step.cells]
            if own:
                cells[row.label, str(pair)] = Cell(row, pair, own, published_for(table, pair, own[0].step.opt))
    others = [trial for step, trial in trials.items() if not step.cells]
    return Found(table, cells, others, epoch or epoch_of_published(cells.values()))


def epoch_of_published(cells) -> str:
    """'last' if all published figures of a known epoch are of the last one, else 'best'."""
    known = {cell.published.epoch for cell in cells if cell.published} - {'unknown'}
    return 'last' if known == {'last'} else 'best'


def _trial(step, progress, logs):
    record = Record(logs, step)
    return Trial(step, progress, record.log, result(step) if progress.state == DONE else None,
                 record.last_lines() if progress.state == FAILED else [])


def published_for(table: Table, pair: Pair, opt) -> Published | None:
    """The figure that the table shows beside a run of this pair with these options."""
    if not table.sources:
        return None
    alone = not hasattr(opt, 'distill')
    how = ALONE if alone else method_key(opt.distill, non_default_options({**vars(opt)}, expected(opt)))
    return published_figures(opt.dataset, *table.sources).get(('' if alone else pair.teacher, pair.student, how))
