"""The charts of a report: accuracy by epoch, and the matrices that a method learnt, such as SemCKD's attention."""
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import figure_style, integer_ticks
from analysis.runs import chosen_on

from .results import Cell


def colour(index: int) -> str:
    """Return the colour of a table's row, the same in every chart."""
    return matplotlib.colors.to_hex(matplotlib.colormaps['tab20'](index % 10 * 2 + index // 10 % 2))


def _plot(axis: Axes, values, **style):
    """Draw a line over the epochs; a single epoch needs a marker to be visible."""
    axis.plot(range(1, len(values) + 1), values, marker='o' if len(values) == 1 else None, **style)
    integer_ticks(axis.xaxis)
    axis.grid(alpha=0.25)


@figure_style()
def curves(cells: list[tuple[int, Cell]]) -> Figure:
    """Plot accuracy by epoch on the set that chooses the best: the mean and the range of a cell's trials.

    cells: (index of the row, cell). Each line has the id 'row-INDEX', by which the page shows and hides it.
    """
    fig = Figure((7, max(4, 0.19 * len(cells))), layout='constrained')      # as high as the legend
    results = [result for _, cell in cells for result in cell.results]
    axis = fig.add_subplot(xlabel='epoch', ylabel=f'{chosen_on(results)} top-1 (%)')
    for index, cell in cells:
        epochs = min(len(run['curve']) for run in cell.results)
        trials = np.array([run['curve'][:epochs] for run in cell.results])
        # Matplotlib omits labels that begin with '_', hence the space.
        _plot(axis, trials.mean(0), color=colour(index), label=f' {cell.row.label}',
              linewidth=1.5, gid=f'row-{index}')
        if len(cell.results) > 1:
            axis.fill_between(range(1, epochs + 1), trials.min(0), trials.max(0), color=colour(index), alpha=0.15,
                              linewidth=0, gid=f'range-{index}')
    fig.legend(loc='outside right upper', fontsize='small')
    return fig


@figure_style()
def learnt(name: str, cell: Cell) -> Figure:
    """Plot a matrix (student stages, teacher stages) by epoch, as the mean of the trials.

    Each student stage has a panel, and each teacher stage a line in it.
    """
    epochs = min(len(run['pictures_by_epoch']) for run in cell.results)
    average = np.mean([[epoch[name] for epoch in run['pictures_by_epoch'][:epochs]] for run in cell.results], axis=0)
    _, stages_s, stages_t = average.shape
    fig = Figure((2.6 * stages_s + 1.2, 2.6), layout='constrained')
    for s in range(stages_s):
        axis = fig.add_subplot(1, stages_s, s + 1, title=f'student stage {s + 1}', xlabel='epoch', ylim=(0, 1))
        for t in range(stages_t):
            _plot(axis, average[:, s, t], color=colour(t),
                  label=f'teacher stage {t + 1}' if s == 0 else None)
        axis.tick_params(labelleft=s == 0)
    fig.legend(loc='outside right upper', fontsize='small')
    return fig


def matrices(cell: Cell) -> list[str]:
    """Return the names of the matrices that all trials of a cell have in all epochs, in one shape."""
    runs = cell.results
    return [name for name in (runs[0]['pictures'] if runs else {})
            if len({str([len(row) for row in epoch.get(name, [])]) for run in runs
                    for epoch in run['pictures_by_epoch']}) == 1]
