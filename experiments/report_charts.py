"""The charts of a report: accuracy by epoch, matrices that a method learnt, and the axes of dots with error bars."""
import re
from collections.abc import Sequence
from statistics import quantiles

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures import STYLE, integer_ticks, to_svg
from analysis.runs import chosen_on

from .results import Cell

HEADLINE = '#e4572e'    # the table's last method, in every chart
OTHERS = [matplotlib.colors.to_hex(matplotlib.colormaps['tab20'](i)) for i in (0, 4, 8, 10, 14, 16, 18, 1, 5, 9, 11, 15,
                                                                             17, 19)]     # without reds and oranges
POINTS = 11             # size of all text; an SVG in a page shows a point as at least one pixel
PAGE_STYLE = {**STYLE, 'font.size': POINTS, 'axes.titlesize': POINTS, 'axes.labelsize': POINTS,
              'legend.fontsize': POINTS}
FENCE = 6               # interquartile ranges beyond the quartiles where an axis of dots ends


def colour(index: int, is_headline: bool) -> str:
    """Return the colour of a table's row, the same in every chart."""
    return HEADLINE if is_headline else OTHERS[index % len(OTHERS)]


def page_svg(figure: Figure, label: str, name: str) -> Markup:
    """Return an <svg> element for a page, with a label for screen readers.

    name: prefix of its ids, unique in the page. An id 'row-3' of an artist becomes the attribute data-row="3", by which
    the page hides it.
    """
    svg = to_svg(figure)
    svg = re.sub(r'\bid="row-(\d+)"', r'data-row="\1"', svg)
    used = {*re.findall(r'#([\w-]+)', svg)}
    svg = re.sub(r'\s+id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else '', svg)
    svg = re.sub(r'(url\(|href=")#', rf'\1#{name}-', svg)
    width = figure.get_figwidth() * 72
    return Markup(svg.replace('<svg ', f'<svg role="img" aria-label="{escape(label)}" style="min-width:{width:.0f}px; '
                                       f'max-width:{1.25 * width:.0f}px" ', 1))


def last_epochs(cells: Sequence[Cell]) -> int:
    """Return the number of epochs after the last decay of the learning rate; without one, a quarter of all epochs."""
    counts = []
    for opt in (trial.run.opt for cell in cells for trial in cell.trials):
        decays = [epoch for epoch in opt.lr_decay_epochs if epoch < opt.epochs] if opt.sched == 'step' else []
        counts.append(opt.epochs - decays[-1] if decays else -(-opt.epochs // 4))
    return max(counts)


def _plot(axis: Axes, epochs, values, **style):
    """Draw a line over the epochs; a single epoch needs a marker to be visible."""
    axis.plot(epochs, values, marker='o' if len(values) == 1 else None, **style)
    integer_ticks(axis.xaxis)
    axis.tick_params(labelsize=POINTS)
    axis.grid(alpha=0.25)


@matplotlib.rc_context(PAGE_STYLE)
def curves(cells: list[tuple[int, Cell]], headline: str | None) -> Figure:
    """Plot accuracy by epoch on the set that chooses the best: all epochs, and those after the last decay.

    Each line is the mean of a cell's trials; the band is the range of the headline's. cells: (index of the row, cell).
    The id 'row-INDEX' of each line is for page_svg.
    """
    fig = Figure((7.7, 3.4), layout='constrained')
    whole, zoom = fig.subplots(1, 2, width_ratios=(2, 3))
    results = [result for _, cell in cells for result in cell.results]
    last = last_epochs([cell for _, cell in cells])
    shown = []
    for index, cell in cells:
        epochs = min(len(run['curve']) for run in cell.results)
        trials = np.array([run['curve'][:epochs] for run in cell.results])
        is_headline = cell.row.label == headline
        style = {'color': colour(index, is_headline), 'gid': f'row-{index}', 'linewidth': 2.6 if is_headline else 1.2,
                 'zorder': 3 if is_headline else 2}
        numbers, late = np.arange(1, epochs + 1), slice(max(0, epochs - last), None)
        _plot(whole, numbers, trials.mean(0), **style)
        _plot(zoom, numbers[late], trials.mean(0)[late], **style)
        if is_headline and len(cell.results) > 1:
            zoom.fill_between(numbers[late], trials.min(0)[late], trials.max(0)[late], color=style['color'], alpha=0.2,
                              linewidth=0, gid=f'row-{index}')
        shown += [*trials.mean(0)[late]]
    low, high = fences(shown)
    margin = 0.05 * (high - low) or 1
    zoom.set(ylim=(low - margin, high + margin), title=f'last {last} epochs', xlabel='epoch')
    whole.set(xlabel='epoch', ylabel=f'{chosen_on(results)} top-1 (%)', title='all epochs')
    return fig


def fences(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest value, without those far below or above the quartiles (Tukey, 1977)."""
    low, high = min(values), max(values)
    if len(values) > 2:
        first, _, third = quantiles(values, n=4, method='inclusive')
        if third > first:
            low, high = max(low, first - FENCE * (third - first)), min(high, third + FENCE * (third - first))
    return low, high


class DotAxis:
    """The axis of dots with error bars in HTML: places are percentages of its width, limited to 0 and 100."""

    def __init__(self, values: Sequence[float], with_zero: bool = False):
        low, high = fences(values)
        if with_zero:
            low, high = min(low, 0), max(high, 0)
        ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        self.low, self.high = float(ticks[0]), float(ticks[-1])
        self.ticks = [(self.place(tick), f'{tick:g}') for tick in ticks]

    def place(self, value: float) -> float:
        return round(min(max((value - self.low) / (self.high - self.low), 0), 1) * 100, 2)

    def is_inside(self, value: float) -> bool:
        return self.low <= value <= self.high


@matplotlib.rc_context(PAGE_STYLE)
def learnt(name: str, cell: Cell) -> Figure:
    """Plot a matrix (student stages, teacher stages) by epoch, as the mean of the trials.

    Each student stage has a panel, and each teacher stage a line in it.
    """
    epochs = min(len(run['pictures_by_epoch']) for run in cell.results)
    average = np.mean([[epoch[name] for epoch in run['pictures_by_epoch'][:epochs]] for run in cell.results], axis=0)
    _, stages_s, stages_t = average.shape
    fig = Figure((2.4 * stages_s + 1.8, 2.6), layout='constrained')
    for s in range(stages_s):
        axis = fig.add_subplot(1, stages_s, s + 1, title=f'student stage {s + 1}', xlabel='epoch', ylim=(0, 1))
        for t in range(stages_t):
            _plot(axis, range(1, epochs + 1), average[:, s, t], color=matplotlib.colormaps['tab10'](t),
                  label=f'teacher stage {t + 1}' if s == 0 else None)
        axis.tick_params(labelleft=s == 0)
    fig.legend(loc='outside right upper')
    return fig


def matrices(cell: Cell) -> list[str]:
    """Return the names of the matrices that all trials of a cell have in all epochs, in one shape."""
    runs = cell.results
    return [name for name in (runs[0]['pictures'] if runs else {})
            if len({str([len(row) for row in epoch.get(name, [])]) for run in runs
                    for epoch in run['pictures_by_epoch']}) == 1]
