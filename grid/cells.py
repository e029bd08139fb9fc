"""What a table has found so far: a cell for each row and pair, with its trials and the published figure."""
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

from distiller_zoo import get_method
from results.published import published, relative_improvement, rows_of, variant, way

from .state import DONE, FAILED, Progress, Record, result
from .steps import Step, expected
from .table_file import ALONE, Pair, Row, Table


@dataclass(eq=False)
class Trial:
    """One run of a cell; run: what results.runs.read_run gives, where it is done."""

    step: Step
    progress: Progress
    log: Path
    run: dict | None
    last_lines: list[str] = field(default_factory=list)     # of the log, where it failed


@dataclass(eq=False)
class Cell:
    """A row's result for a pair. Accuracies are top-1 in percent, of the test set."""

    row: Row
    pair: Pair
    trials: list[Trial]
    published: tuple[float, float | None, str] | None       # top-1, standard deviation, source

    @cached_property
    def runs(self) -> list[dict]:
        """Of the trials that are done."""
        return [trial.run for trial in self.trials if trial.run]

    def figures(self, kind: str) -> list[float]:
        """kind: 'top1', each trial's best epoch, or 'last', its last one."""
        return [run[kind] for run in self.runs]

    def mean(self, kind: str = 'top1') -> float | None:
        return mean(self.figures(kind)) if self.runs else None

    def deviation(self, kind: str = 'top1') -> float | None:
        """The standard deviation over the trials, of a sample."""
        return stdev(self.figures(kind)) if len(self.runs) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours less the published mean."""
        return self.mean() - self.published[0] if self.runs and self.published else None

    @property
    def in_deviations(self) -> float | None:
        """The difference in units of the deviation of one trial: of ours and theirs the root mean square."""
        known = [d for d in (self.deviation(), self.published and self.published[1]) if d is not None]
        if self.difference is None or not any(known):
            return None
        return self.difference / mean(d * d for d in known) ** 0.5

    @property
    def missing(self) -> list[Trial]:
        return [trial for trial in self.trials if not trial.run]


@dataclass
class Found:
    """All cells of a table, and its teachers."""

    table: Table
    cells: dict[tuple[str, str], Cell]      # (row's label, pair)
    others: list[Trial]                     # teachers and auxiliary teachers

    def cell(self, row: Row, pair: Pair) -> Cell | None:
        """None where the table leaves it out."""
        return self.cells.get((row.label, str(pair)))

    def teacher(self, pair: Pair) -> float | None:
        """The accuracy of a pair's teacher, where it was trained here."""
        return next((trial.run['top1'] for trial in self.others if trial.run and trial.run['model'] == pair.teacher
                     and not trial.run['teacher']), None)

    def improvement(self) -> dict[str, tuple[float, int, float | None]]:
        """row -> (average relative improvement of the headline over it in percent, over how many pairs, published)."""
        table = self.table
        if table.headline is None:
            return {}
        top1 = {}
        for (label, _), cell in self.cells.items():
            alone = cell.row.method == ALONE
            if cell.runs:
                # Of several rows alone, the first one.
                top1.setdefault(('' if alone else cell.pair.teacher, cell.pair.student, 'alone' if alone else label),
                                cell.mean())
        found = relative_improvement(top1, table.headline)
        ours = next(row.method for row in table.rows if row.label == table.headline)
        theirs = {row['over']: float(row['ari']) for row in rows_of('published_ari.csv') if row['of'] == ours} \
            if table.published == get_method(ours).title else {}
        by_label = {row.label: row.method for row in table.rows}
        return {label: (percent, pairs, theirs.get(by_label[label])) for label, (percent, pairs) in found.items()}


def collect(table: Table, steps: list[Step], logs: Path, now: dict[Step, Progress]) -> Found:
    """Read what there is of a table's runs."""
    trials = {step: _trial(step, now[step], logs) for step in steps}
    cells = {}
    for pair in table.pairs:
        for row in table.rows:
            own = [trial for step, trial in trials.items() if (row.label, str(pair)) in step.cells]
            if own:
                cells[row.label, str(pair)] = Cell(row, pair, own, _published(table, own[0].step, pair))
    return Found(table, cells, [trial for step, trial in trials.items() if not step.cells])


def _trial(step, progress, logs):
    record = Record(logs, step)
    return Trial(step, progress, record.log, result(step) if progress.state == DONE else None,
                 record.last_lines() if progress.state == FAILED else [])


def _published(table, step, pair):
    opt = step.opt
    alone = not hasattr(opt, 'distill')
    figures = published(opt.dataset, table.published) if table.published else {}
    how = ALONE if alone else way(opt.distill, variant({**vars(opt)}, expected(opt)))
    return figures.get(('' if alone else pair.teacher, pair.student, how))
