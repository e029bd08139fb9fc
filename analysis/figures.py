"""Figures, as PNG and as SVG: how they look, how they are saved, and those of trained nets beside their teacher."""
import io
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from helper.files import write_atomically

from .metrics import Calibration

INK = '#010203'     # of text, axes and ticks: what an SVG shows in the colour of the page that it is in
WRONG, BLUE, GREY = '#d62728', '#1f77b4', '#7f7f7f'
COLUMNS = 4         # panels beside each other
NAMED_CLASSES = 25  # the most class names along an axis
INCHES = 0.075      # width of a character
STYLE = {
    'text.color': INK, 'axes.edgecolor': INK, 'axes.labelcolor': INK, 'xtick.color': INK, 'ytick.color': INK,
    'axes.facecolor': 'none', 'font.size': 9, 'axes.titlesize': 'medium', 'legend.frameon': False,
    'text.parse_math': False,       # a name with dollars in it is no formula; nor are the labels of a log axis
    'svg.fonttype': 'none', 'svg.hashsalt': 'figures',
}
ALONE = '<style>svg:root {background: white; color: black}</style>'     # not of an SVG within a page


def figure_style():
    """The look of all figures, as a decorator of what draws one, or in a with statement."""
    return matplotlib.rc_context(STYLE)


@figure_style()
def to_svg(fig: Figure) -> str:
    """An <svg> element to put into a page: without a background, text as text, and INK is the page's colour of text.

    As a file of its own it is black on white. The same figure gives the same bytes.
    """
    _settle(fig)
    buffer = io.StringIO()
    fig.savefig(buffer, format='svg', facecolor='none', metadata=dict.fromkeys(('Date', 'Creator', 'Format', 'Type')))
    text = re.sub(rf'(fill|stroke): {INK}\b', r'\1: currentColor', buffer.getvalue())
    begin = text.index('<svg')
    end = text.index('>', begin) + 1
    return f'{text[begin:end]}\n {ALONE}{text[end:]}'


@figure_style()
def save_figure(fig: Figure, stem: Path) -> None:
    """Write {stem}.png and {stem}.svg; each takes its place when it is whole."""
    _settle(fig)
    write_atomically(Path(f'{stem}.png'), lambda file: fig.savefig(
        file, format='png', dpi=150, facecolor='white', metadata={'Software': None}))
    write_atomically(Path(f'{stem}.svg'), to_svg(fig).encode())


def _settle(fig):
    """Let the layout come to rest, so that every later drawing has the same."""
    if fig.get_layout_engine():
        fig.draw_without_rendering()
        fig.draw_without_rendering()
        fig.set_layout_engine('none')


def panel_grid(count: int) -> tuple[int, int]:
    """(rows, columns) for so many panels: at most COLUMNS beside each other, and rows about as long as each other."""
    rows = math.ceil(count / COLUMNS)
    return rows, math.ceil(count / rows)


def make_panels(names: Sequence[str], width: float, height: float, beside: float) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each name, which becomes its title. beside: space beside them; all in inches."""
    rows, columns = panel_grid(len(names))
    fig = Figure((width * columns + beside, height * rows), layout='constrained')
    return fig, [fig.add_subplot(rows, columns, number, title=wrap_text(name, width))
                 for number, name in enumerate(names, start=1)]


def wrap_text(text: str, inches: float) -> str:
    """The text in lines of limited length."""
    return '\n'.join(textwrap.fill(line, max(8, int(inches / INCHES))) for line in text.split('\n'))


def integer_ticks(axis: Axis) -> None:
    """Put ticks only at whole numbers, even if there is a single one."""
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


@figure_style()
def tsne(points: dict[str, np.ndarray], labels: np.ndarray, classes: Sequence[str]) -> Figure:
    """Embeddings of the same images by several nets. points: name -> (N, 2). labels: (N,), the class of each image.
    classes: the name of each label that there is, in order."""
    fig, axes = make_panels([*points], 2.8, 3, beside=0.4 + 0.08 * max(map(len, classes)))
    shown = np.unique(labels)
    colours = matplotlib.colormaps['tab10' if len(shown) <= 10 else 'tab20']
    for axis, xy in zip(axes, points.values(), strict=True):
        for place, (label, name) in enumerate(zip(shown, classes, strict=True)):
            of = labels == label
            axis.scatter(*xy[of].T, s=6, linewidths=0, color=colours(place % colours.N), label=name)
        axis.set(xticks=[], yticks=[])
    fig.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', markerscale=2.5, handletextpad=0.1,
               fontsize='small', labelspacing=0.25)
    return fig


@figure_style()
def correlations(differences: dict[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """How a student's correlations between the logits of classes differ from the teacher's, on one scale for all.

    differences: name -> (classes, classes). classes: their names, which label the axes of up to NAMED_CLASSES.
    """
    highest = max(np.nanmax(difference, initial=0) for difference in differences.values())
    named = len(classes) <= NAMED_CLASSES
    room, size = (0.8 * INCHES * max(map(len, classes)), max(2.3, 0.15 * len(classes))) if named else (0, 2.3)
    fig, axes = make_panels([f'{name}\nmean {difference.mean():.3f}' for name, difference in differences.items()],
                       size + 0.4, size + 0.9 + room, beside=0.9 + room)
    columns = panel_grid(len(axes))[1]
    for place, (axis, difference) in enumerate(zip(axes, differences.values(), strict=True)):
        image = axis.imshow(difference, vmin=0, vmax=highest or 1, cmap='magma', interpolation='none')
        if named:
            axis.set_xticks(range(len(classes)), classes, rotation=90, size=8)
            axis.set_yticks(range(len(classes)), classes if place % columns == 0 else [], size=8)
        else:
            integer_ticks(axis.xaxis)
            integer_ticks(axis.yaxis)
            axis.set(xlabel='class', ylabel='class')
    fig.colorbar(image, ax=axes, shrink=0.8, label='|difference of correlation|')
    return fig


@figure_style()
def cka(matrices: dict[str, np.ndarray], teacher: str) -> Figure:
    """Linear CKA of each feature of a student, from above, with each of the teacher. matrices: name -> (rows,
    columns)."""
    rows, columns = (max(matrix.shape[side] for matrix in matrices.values()) for side in (0, 1))
    fig, axes = make_panels([*matrices], 0.9 + 0.42 * columns, 0.9 + 0.36 * rows, beside=0.9)
    for axis, matrix in zip(axes, matrices.values(), strict=True):
        image = axis.imshow(matrix, vmin=0, vmax=1, cmap='viridis', interpolation='none', aspect='auto')
        for (row, column), value in np.ndenumerate(matrix):
            axis.text(column, row, f'{value:.2f}', ha='center', va='center', size=8,
                      color=INK if np.isnan(value) else 'black' if value > 0.6 else 'white')
        down, across = (_features(n) for n in matrix.shape)
        axis.set_xticks(range(len(across)), across)
        axis.set_yticks(range(len(down)), down)
        axis.set(xlabel=teacher, ylabel='student')
    fig.colorbar(image, ax=axes, shrink=0.8, label='linear CKA')
    return fig


def _features(count):
    """Names of the features of a net: the stem, its stages, the embedding."""
    return ['stem', *map(str, range(1, count - 1)), 'emb.']


@figure_style()
def grad_cam(images: np.ndarray, names: Sequence[str], true: Sequence[str],
             nets: dict[str, tuple[np.ndarray, Sequence[str], Sequence[bool]]]) -> Figure:
    """A row for each image: as it is, and where each net sees the class that it predicts.

    images: uint8 (N, H, W, 3). names, true: of each image its name and its class. nets: name -> (maps (N, H, W) from 0
    to 1, what stands above each, whether the prediction is right).
    """
    width = 1.75
    true, words = [wrap_text(text, width) for text in true], {net: [wrap_text(text, width) for text in of[1]]
                                                         for net, of in nets.items()}
    lines = [max(text.count('\n') for text in row) for row in zip(true, *words.values(), strict=True)]
    heights = [width + 0.13 * more for more in lines]
    fig = Figure((width * (1 + len(nets)), sum(heights) + 0.5), layout='constrained')
    axes = fig.subplots(len(images), 1 + len(nets), squeeze=False, height_ratios=heights)
    for row, image, name, label in zip(axes[:, 0], images, names, true, strict=True):
        row.imshow(image, interpolation='none')
        row.set_title(label, size=8)
        row.set_ylabel(name)
    axes[-1, 0].set_xlabel('true class')
    for column, (net, (maps, _, right)) in zip(axes.T[1:], nets.items(), strict=True):
        for axis, image, cam, text, is_right in zip(column, images, maps, words[net], right, strict=True):
            heat = matplotlib.colormaps['jet'](cam)[..., :3]
            axis.imshow(0.5 * image / 255 + 0.5 * heat, interpolation='none')
            axis.set_title(text, size=8, color=INK if is_right else WRONG)
        column[-1].set_xlabel(wrap_text(net, width))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return fig


@figure_style()
def calibration(nets: dict[str, Calibration]) -> Figure:
    """Reliability diagrams: how often a net is right when it is so sure, above how often it is so sure."""
    rows, columns = panel_grid(len(nets))
    fig = Figure((2.6 * columns, 3.4 * rows), layout='constrained')
    cells = fig.add_gridspec(rows, columns)
    for cell, (name, found) in zip(np.ndindex(rows, columns), nets.items(), strict=False):
        upper, lower = cells[cell].subgridspec(2, 1, height_ratios=(3, 1)).subplots(sharex=True)
        bins = len(found.count)
        left, some = np.arange(bins) / bins, found.count.numpy() > 0
        accuracy, confidence = found.accuracy.numpy(), found.confidence.numpy()
        count, bar = found.count.numpy(), {'width': 1 / bins, 'align': 'edge'}
        upper.bar(left, accuracy, color=BLUE, edgecolor='white', linewidth=0.5, label='accuracy', **bar)
        upper.bar(left[some], (confidence - accuracy)[some], bottom=accuracy[some], facecolor='none', edgecolor=WRONG,
                  hatch='/////', linewidth=0.5, label='gap to the confidence', **bar)
        upper.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle='--')
        upper.set(title=wrap_text(f'{name}\nECE {found.ece * 100:.1f} %', 2.3), xlim=(0, 1), ylim=(0, 1))
        lower.bar(left, count, color=GREY, edgecolor='white', linewidth=0.5, **bar)
        lower.set(xlabel='confidence', xticks=np.linspace(0, 1, 6), yscale='log', ylim=(0.5, 2 * count.max()))
        lower.yaxis.set_major_formatter('{x:g}')
        lower.yaxis.set_minor_formatter('')
        if cell[1] == 0:
            upper.set_ylabel('accuracy')
            lower.set_ylabel('images')
    fig.legend(*upper.get_legend_handles_labels(), loc='outside lower center', ncols=2)
    return fig
