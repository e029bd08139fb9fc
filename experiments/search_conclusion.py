"""The conclusion of a search: which method and which values are best, and what to doubt."""
from analysis.statistics import CLEAR, signed
from helper.cli import readable_hours
from helper.errors import counted, listed

from .conclusion import Conclusion
from .progress import FAILED, PRUNED, RUNNING
from .report_text import figure
from .search_rows import ReportRow, describe

MOST_NAMES = 12     # rows in a list of a warning


def conclude(rows: list[ReportRow]) -> Conclusion:
    """Return the conclusion of the rows of a search."""
    pairs = [*dict.fromkeys(row.result.pair for row in rows)]
    sentences = []
    for pair in pairs:
        prefix = f'{pair}: ' if len(pairs) > 1 else ''
        sentences += [f'{prefix}{sentence}' for sentence in _of_pair([row for row in rows if row.result.pair == pair])]
    return Conclusion([*sentences, *_tuned_on_test_set(rows)] or ['no trial is done yet'], _details(rows),
                      _warnings(rows))


def leader(rows: list[ReportRow]) -> ReportRow | None:
    """Return the row with the highest accuracy; None if no trial is done."""
    return max((row for row in rows if row.best), key=lambda row: row.best.accuracy, default=None)


def _of_pair(rows):
    row = leader(rows)
    if not row:
        return []
    name, values = 'the student alone' if row.is_alone else row.result.label, describe(row.best.values)
    values += ', its published values,' if row.best.values and row.best.values in row.result.published_values else ''
    text = f'{name}{values and f" with {values}"} is best on the validation set: {row.best.accuracy:.1f} %'
    if row.gain is not None:
        text += f', {signed(row.gain, 1)} points over the student alone'
    if row.gain_over_published:
        text += f' and {signed(row.gain_over_published, 1)} over its published values'
    sentences = [text]
    if difference := row.test_difference:
        sentences.append(f'on the test set it reaches {_mean(row.tuned)} %, with published values '
                         f'{_mean(row.published_cell)} %, {signed(difference.value, 1)} points{difference.remark}')
    elif row.tuned:
        sentences.append(f'on the test set it reaches {_mean(row.tuned)} %')
    return sentences


def _mean(cell):
    return figure(cell.mean('best'), cell.deviation('best'))


def _tuned_on_test_set(rows):
    """Return the sentence on the final runs of all rows; none if fewer than two rows can be tested."""
    tested = [difference for row in rows if (difference := row.test_difference) and difference.sigma]
    if len(tested) < 2:
        return []
    higher, lower = (sum(difference.is_clear and sign * difference.value > 0 for difference in tested)
                     for sign in (1, -1))
    return [f'tuned values are better than published ones by more than {CLEAR} σ in {higher} of {len(tested)} rows '
            f'with final runs, and worse in {lower}']


def _details(rows):
    counts = sorted({len(row.result.trials) for row in rows if row.parts})
    trials = [trial for row in rows for trial in row.result.trials]
    early, failed = (sum(trial.state == state for trial in trials) for state in (PRUNED, FAILED))
    each = [f'{counts[0]} to {counted(counts[-1], "trial")} each' if len(counts) > 1 else
            f'{counted(counts[0], "trial")} each'] if counts else []
    return [counted(len(rows), 'row'), *each, f'{early} ended early', f'{failed} failed',
            f'{readable_hours(sum(row.seconds for row in rows) / 3600)} of training']


def _warnings(rows):
    warnings, several_pairs = [], len({row.result.pair for row in rows}) > 1

    def name(row):
        return f'{row.result.label}, {row.result.pair}' if several_pairs else row.result.label

    if near := [f'{name(row)} ({", ".join(row.ends())})' for row in rows if row.ends()]:
        warnings.append(f'The best value lies at an end of its range, so a wider range may hold a better one: '
                        f'{listed(near, MOST_NAMES)}.')
    if without := [name(row) for row in rows if not row.best]:
        warnings.append(f'No trial is done: {listed(without, MOST_NAMES)}.')
    if running := sum(row.result.count(RUNNING) for row in rows):
        warnings.append(f'{counted(running, "trial")} not finished.')
    return warnings
