"""The results of a search so far: for each row and pair its trials, the best values, and the command to type."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helper.cli import table

from .folder_check import flags_of
from .planned_run import shell
from .progress import DONE, FAILED, PRUNED, RUNNING
from .search import ERROR, SECONDS, Search
from .study import HOPELESS
from .table_file import read_table

STATES = {'COMPLETE': DONE, 'PRUNED': PRUNED, 'FAIL': FAILED, 'RUNNING': RUNNING}       # of Optuna


@dataclass
class Trial:
    """A trial. Accuracies are top-1 in percent on the validation set."""

    number: int                 # from 1
    state: str                  # progress.DONE, PRUNED, FAILED or RUNNING
    values: dict                # name of a range -> value; 'distill' is the method
    accuracy: float | None      # of its best epoch; None unless it is done
    curve: list[float]          # the best accuracy up to each epoch
    ended_after: int | None     # epoch after which it was ended early
    seconds: float | None
    error: list[str]            # last lines of the log of a failed trial


@dataclass
class RowResult:
    """The results of a row and a pair."""

    label: str
    pair: str                   # 'TEACHER -> STUDENT'
    method: str                 # of the best trial, else the first one of the row
    ranges: dict[str, str]      # name -> range as in the file
    trials: list[Trial]
    left: int                   # trials that have not begun; 0 from load(), which does not know --trials
    published_values: list[dict]    # of each method, as far as the ranges have them
    command: str | None = None  # trains the best values and measures the test set; None if no trial is done

    @property
    def best(self) -> Trial | None:
        """The trial with the highest accuracy, the first one of several; None if none is done."""
        done = [trial for trial in self.trials if trial.accuracy is not None]
        return max(done, key=lambda trial: trial.accuracy, default=None)

    @property
    def published(self) -> float | None:
        """The accuracy of the published values, of several methods the highest; None if no such trial is done."""
        return max((trial.accuracy for trial in self.trials if trial.accuracy is not None and trial.values
                    and trial.values in self.published_values), default=None)

    def count(self, state: str) -> int:
        return sum(trial.state == state for trial in self.trials)


def row_results(search: Search) -> list[RowResult]:
    """Return the results so far, of each row and pair in the order of the space."""
    results = []
    for cell in search.cells:
        trials = [Trial(trial.number + 1, STATES[trial.state.name], dict(trial.params),
                        trial.value if trial.state.name == 'COMPLETE' else None,
                        [value for _, value in sorted(trial.intermediate_values.items())],
                        trial.user_attrs.get(HOPELESS), trial.user_attrs.get(SECONDS), trial.user_attrs.get(ERROR, []))
                  for trial in cell.trials()]
        ranges = {part.name: part for part in cell.row.ranges}
        published = [{name: ranges[name].rounded(value) for name, value in values.items()} for values in cell.published]
        result = RowResult(cell.row.label, str(cell.pair), cell.row.method,
                           {name: part.text for name, part in ranges.items()}, trials, search.left(cell), published)
        if best := result.best:
            result.method = best.values.get('distill', cell.row.method)
            result.command = shell(search.tuned_run(cell, best.values).command([]))
        results.append(result)
    return results


def load(space: str | Path, save: Path, extra_args: Sequence[str] = ()) -> list[RowResult]:
    """Return the results so far of the search of a space file in the folder `save`, without a change of any file.

    extra_args: the flags of every run; none: those that the folder notes. Raises UserError.
    """
    table, save = read_table(Path(space), has_ranges=True), Path(save)
    search = Search(table, save, [*extra_args] or flags_of(save), trials=0, has_pruner=True)
    search.open(is_new=False)
    return row_results(search)


def text(results: list[RowResult]) -> str:
    """Return a table of the rows, the command of each, and the failed trials."""
    heads = 'row', 'pair', 'best values', 'validation top-1 %', 'published', 'trials', 'ended early', 'failed', 'left'
    rows = []
    for result in results:
        best = result.best
        values = ' '.join(f'{name}={value}' for name, value in best.values.items()) if best else ''
        rows.append((result.label, result.pair, values, f'{best.accuracy:.2f}' if best else '',
                     '' if result.published is None else f'{result.published:.2f}', str(result.count(DONE)),
                     str(result.count(PRUNED)), str(result.count(FAILED)),
                     str(result.left + result.count('running'))))
    lines = [table(heads, rows, '<<<>>>>>>')]
    for result in results:
        if result.command:
            lines.append(f'\n# {result.label}, {result.pair}\n{result.command}')
        for trial in result.trials:
            if trial.state == FAILED:
                lines += [f'failed: {result.label}, {result.pair}, trial {trial.number}',
                          *(f'    {line}' for line in trial.error)]
    return '\n'.join(lines)
