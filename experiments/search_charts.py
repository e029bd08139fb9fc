"""The charts of a search: the accuracy of each trial by the value of a range."""
from statistics import quantiles

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from .progress import FAILED, PRUNED
from .report_charts import HEADLINE, PAGE_STYLE
from .search_rows import ReportRow
from .space import Range

DOT = '#4a7ab5'
LINE = '#7f7f7f'


def limits(rows: list[ReportRow]) -> tuple[float, float]:
    """Return the lowest and the highest accuracy that all charts of a pair show.

    They begin at the lower quartile of the trials, and at least a quarter of the highest gain below the student alone:
    trials that diverge would compress the differences between the others.
    """
    values = [trial.accuracy for row in rows for trial in row.result.trials if trial.accuracy is not None]
    if not values:
        return 0.0, 100.0
    low = quantiles(values, n=4, method='inclusive')[0] if len(values) > 1 else values[0]
    low = min([low, *(row.alone - (max(values) - row.alone) / 4 for row in rows if row.alone is not None)])
    margin = 0.06 * (max(values) - low) or 1
    return low - margin, max(values) + margin


@matplotlib.rc_context(PAGE_STYLE)
def accuracy_by_value(row: ReportRow, part: Range, shown: tuple[float, float]) -> Figure:
    """Plot the accuracy of each trial by its value of a range. shown: the lowest and the highest accuracy of the axis.

    A dot is a complete trial, a ring one that ended early, at its last accuracy; the best one is a star. Trials below
    the axis are triangles at its lower edge, failed ones crosses. Vertical: the published values; horizontal: the
    student alone.
    """
    fig = Figure((3.3, 2.2), layout='constrained')
    axis = fig.add_subplot(xlabel=part.name, ylim=shown)
    trials = [trial for trial in row.result.trials if part.name in trial.values]
    position = part.choices.index if part.choices else float
    done = sorted((position(trial.values[part.name]), trial.accuracy) for trial in trials if trial.accuracy is not None)
    early = [(position(trial.values[part.name]), trial.curve[-1]) for trial in trials
             if trial.state == PRUNED and trial.curve]
    failed = [(position(trial.values[part.name]), shown[0]) for trial in trials if trial.state == FAILED]
    if row.alone is not None:
        axis.axhline(row.alone, color=LINE, linewidth=1, linestyle='--', zorder=1)
    for published in row.result.published_values:
        if part.name in published:
            axis.axvline(position(published[part.name]), color=LINE, linewidth=1.4, linestyle=':', zorder=1)
    if len(row.parts) == 1 and not part.choices:
        axis.plot(*zip(*done, strict=True) if done else ([], []), color=DOT, linewidth=1, alpha=0.6, zorder=2)
    for points, filled in ((done, True), (early, False)):
        for marker, is_inside in (('o', True), ('v', False)):
            inside = [(x, max(y, shown[0])) for x, y in points if (y >= shown[0]) == is_inside]
            if inside:
                axis.scatter(*zip(*inside, strict=True), s=26, marker=marker, zorder=3, clip_on=False, edgecolors=DOT,
                             facecolors=DOT if filled else 'none')
    if failed:
        axis.scatter(*zip(*failed, strict=True), s=26, marker='x', color=LINE, zorder=3, clip_on=False)
    if row.best and part.name in row.best.values:
        axis.scatter([position(row.best.values[part.name])], [row.best.accuracy], s=110, marker='*', color=HEADLINE,
                     zorder=4, clip_on=False)
    _set_scale(axis, part)
    axis.yaxis.set_major_locator(MaxNLocator(4))
    axis.grid(alpha=0.25)
    return fig


def _set_scale(axis, part):
    if part.choices:
        axis.set_xticks(range(len(part.choices)), [str(choice) for choice in part.choices])
        axis.set_xlim(-0.5, len(part.choices) - 0.5)
    elif part.is_log:
        margin = (part.high / part.low) ** 0.03
        axis.set(xscale='log', xlim=(part.low / margin, part.high * margin))
        axis.xaxis.set_major_locator(LogLocator(numticks=6))
        axis.xaxis.set_major_formatter('{x:g}')
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.03 * (part.high - part.low)
        axis.set_xlim(part.low - margin, part.high + margin)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=part.is_whole))
