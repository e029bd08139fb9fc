"""The report of a search, for each row and pair: gains, published values, importance, final runs."""
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.statistics import Difference, difference

from .final_table import KINDS, is_of_row
from .plan import plan_runs
from .progress import progress_of
from .results import Cell, TableResults, read_results
from .search import Search
from .search_results import RowResult, Trial, row_results
from .space import METHOD, Range
from .study import importances
from .table_file import ALONE, read_table


@dataclass(eq=False)
class ReportRow:
    """A row and a pair of a search. Accuracies are top-1 in percent on the validation set, those of Cells on the test
    set."""

    index: int                              # of the row in the space
    result: RowResult
    parts: list[Range]                      # its ranges, without the range of the methods
    alone: float | None                     # the best accuracy of the student alone
    importance: dict[str, float]            # range name -> share of the importance; empty with too few trials
    tuned: Cell | None = None               # final runs of the best values
    published_cell: Cell | None = None      # final runs of the published values
    auto: Cell | None = None                # final runs of the published values with -b auto

    @property
    def best(self) -> Trial | None:
        return self.result.best

    @property
    def is_alone(self) -> bool:
        return self.result.method == ALONE

    @property
    def published_values(self) -> dict:
        """The published values of the best trial's method, as far as the ranges have them."""
        return next(values for values in self.result.published_values
                    if values.get(METHOD, self.result.method) == self.result.method)

    @property
    def gain(self) -> float | None:
        """The gain of the best trial over the student alone, in percentage points."""
        return self.best.accuracy - self.alone if self.best and self.alone is not None and not self.is_alone else None

    @property
    def gain_over_published(self) -> float | None:
        published = self.result.published
        return self.best.accuracy - published if self.best and published is not None else None

    @property
    def seconds(self) -> float:
        return sum(trial.seconds or 0 for trial in self.result.trials)

    @property
    def test_difference(self) -> Difference | None:
        """The tuned minus the published values on the test set; None without final runs of both."""
        means = [cell.average('best') if cell else None for cell in (self.tuned, self.published_cell)]
        return difference(*means) if all(means) and self.tuned is not self.published_cell else None

    def ends(self) -> list[str]:
        """Return the best values that lie within 5 % of an end of their range, as 'alpha 0.01'."""
        values = self.best.values if self.best else {}
        return [describe({part.name: values[part.name]}) for part in self.parts if part.name in values
                and not part.choices and part.count > 20 and not 0.05 < part.position(values[part.name]) < 0.95]


def describe(values: dict) -> str:
    """Return values of ranges as 'dkd, alpha 3.16, kd_T 4', with three significant digits."""
    texts = {name: f'{float(f"{value:.3g}"):g}' if isinstance(value, float) else str(value)
             for name, value in values.items()}
    return ', '.join(text if name == METHOD else f'{name} {text}' for name, text in texts.items())


def report_rows(search: Search, final: TableResults | None = None) -> list[ReportRow]:
    """Return the rows and pairs with trials, in the order of the space. final: the results of the final runs."""
    results = [(cell, result) for cell, result in zip(search.cells, row_results(search), strict=True)
               if result.trials]
    labels, rows = [row.label for row in search.table.rows], []
    for cell, result in results:
        row = ReportRow(labels.index(cell.row.label), result, [part for part in cell.row.ranges if part.name != METHOD],
                        _alone(results, cell.pair), importances(cell.study))
        rows.append(_with_final(row, final) if final else row)
    return rows


def _alone(results, pair):
    """Return the best accuracy of the student alone, which pairs with one student share."""
    return max((result.best.accuracy for cell, result in results if cell.row.method == ALONE and result.best
                and (cell.pair.student, cell.pair.flags) == (pair.student, pair.flags)), default=None)


def read_final(save: Path, extra_args: list[str]) -> TableResults | None:
    """Return the results of the final runs in the folder of a search; None if there are none. extra_args: of tune.py.
    """
    file, folder = save / 'final.toml', save / 'final'
    if not file.is_file() or not folder.is_dir():
        return None
    table = read_table(file)
    progress = {run: progress_of(run, folder / 'logs') for run in plan_runs(table, str(folder), extra_args)}
    results = read_results(table, progress, folder / 'logs', 'best')
    return results if any(cell.results for cell in results.cells.values()) else None


def _with_final(row, final):
    if not row.result.ranges:
        return replace(row, tuned=_final_cell(row, final, ''))
    tuned, published, auto = (_final_cell(row, final, kind) for kind in KINDS)
    return replace(row, tuned=tuned or published, published_cell=published, auto=auto)


def _final_cell(row, final, kind):
    """Return the finished cell of 'LABEL, KIND' in final.toml; a method or a pair may follow in its label."""
    name = f'{row.result.label}, {kind}' if kind else row.result.label
    for cell in final.cells.values():
        if str(cell.pair) == row.result.pair and cell.results and is_of_row(cell.row.label, name):
            return cell
    return None
