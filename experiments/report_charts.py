"""The charts of a report: accuracy curves of a pair, and what a method learnt through the epochs."""
from statistics import mean

import matplotlib
from matplotlib.figure import Figure

from analysis.figures import figure_style, integer_ticks

from .results import Cell


def colour(place: int) -> str:
    """The colour of the row at this place of a table, the same in every chart."""
    return matplotlib.colors.to_hex(matplotlib.colormaps['tab20'](place % 10 * 2 + place // 10 % 2))


def _marker(epochs) -> str | None:
    """A line of a single epoch cannot be seen without."""
    return 'o' if len(epochs) == 1 else None


@figure_style()
def curves(cells: list[tuple[int, Cell]]) -> Figure:
    """Test accuracy by epoch, the mean of a cell's trials and their range. cells: (place of the row, cell).

    Every line has the id 'row-PLACE', so that the page can show and hide it.
    """
    fig = Figure((7, max(4, 0.19 * len(cells))), layout='constrained')      # as high as the legend
    axis = fig.add_subplot(xlabel='epoch', ylabel='test top-1 (%)')
    for place, cell in cells:
        by_epoch = list(zip(*(run['curve'] for run in cell.runs), strict=False))      # as many epochs as all have
        numbers = range(1, len(by_epoch) + 1)
        # The space before the label, since matplotlib leaves out what begins with '_'.
        axis.plot(numbers, [mean(values) for values in by_epoch], color=colour(place), label=f' {cell.row.label}',
                  linewidth=1.5, marker=_marker(by_epoch), gid=f'row-{place}')
        if len(cell.runs) > 1:
            axis.fill_between(numbers, [min(values) for values in by_epoch], [max(values) for values in by_epoch],
                              color=colour(place), alpha=0.15, linewidth=0, gid=f'range-{place}')
    integer_ticks(axis.xaxis)
    axis.grid(alpha=0.25)
    fig.legend(loc='outside right upper', fontsize='small')
    return fig


@figure_style()
def learnt(name: str, cell: Cell) -> Figure:
    """What a method learnt, a matrix (student's stages, teacher's stages) an epoch: the mean of the trials.

    A panel for each stage of the student, a line for each stage of the teacher.
    """
    epochs = [[run['pictures_by_epoch'][epoch][name] for run in cell.runs]
              for epoch in range(min(len(run['pictures_by_epoch']) for run in cell.runs))]
    average = [[[mean(values) for values in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]
               for matrices in epochs]
    stages_s, stages_t = len(average[0]), len(average[0][0])
    fig = Figure((2.6 * stages_s + 1.2, 2.6), layout='constrained')
    for s in range(stages_s):
        axis = fig.add_subplot(1, stages_s, s + 1, title=f'student stage {s + 1}', xlabel='epoch', ylim=(0, 1))
        for t in range(stages_t):
            axis.plot(range(1, len(average) + 1), [matrix[s][t] for matrix in average], color=colour(t),
                      marker=_marker(average), label=f'teacher stage {t + 1}' if s == 0 else None)
        integer_ticks(axis.xaxis)
        axis.grid(alpha=0.25)
        axis.tick_params(labelleft=s == 0)
    fig.legend(loc='outside right upper', fontsize='small')
    return fig


def matrices(cell: Cell) -> list[str]:
    """The names of the matrices that all trials of a cell have in all epochs, of one shape."""
    runs = cell.runs
    names = runs[0]['pictures'] if runs else {}
    return [name for name in names
            if len({str([len(row) for row in epoch.get(name, [])]) for run in runs
                    for epoch in run['pictures_by_epoch']}) == 1]
