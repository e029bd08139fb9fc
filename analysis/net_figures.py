"""The figures that compare trained nets with their teacher."""
import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from helper.errors import counted

from .figures import (
    BLUE,
    GREY,
    INCHES,
    INK,
    WRONG,
    draw_matrix,
    figure_style,
    integer_ticks,
    make_panels,
    panel_grid,
    shorten,
    wrap_text,
)
from .metrics import Calibration

NAMED_CLASSES = 25  # with more classes, an axis shows numbers instead of names
NUMBERED_CLASSES = 12       # with more classes, the cells of a confusion matrix have no numbers
MOST_CONFUSED = 10          # pairs of classes below a confusion matrix without names
SHOWN_CLASSES = 40          # of more, half of them the worst and half the best
SHEET_COLUMNS = 6           # images side by side in a contact sheet


@figure_style()
def tsne(points: dict[str, np.ndarray], labels: np.ndarray, classes: Sequence[str]) -> Figure:
    """Embeddings of the same images by several nets. points: net -> (N, 2). labels: (N,), the class of each image.
    classes: the names of the labels that occur, in order."""
    fig, axes = make_panels([*points], 2.8, 3, margin=0.4 + 0.08 * max(map(len, classes)))
    values = np.unique(labels)
    colours = matplotlib.colormaps['tab10' if len(values) <= 10 else 'tab20']
    for axis, xy in zip(axes, points.values(), strict=True):
        for i, (label, name) in enumerate(zip(values, classes, strict=True)):
            axis.scatter(*xy[labels == label].T, s=6, linewidths=0, color=colours(i % colours.N), label=name)
        axis.set(xticks=[], yticks=[])
    fig.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', markerscale=2.5, handletextpad=0.1,
               fontsize='small', labelspacing=0.25)
    return fig


def width_of_names(classes: Sequence[str]) -> float:
    """The inches that class names take beside an axis; 0 if label_classes writes numbers."""
    return 0.8 * INCHES * max(map(len, classes)) if len(classes) <= NAMED_CLASSES else 0


def label_classes(axis: Axes, classes: Sequence[str], is_leftmost: bool) -> None:
    """Write the class names at the columns of a matrix and, in the leftmost panel, at its rows; numbers if too many."""
    if len(classes) <= NAMED_CLASSES:
        axis.set_xticks(range(len(classes)), classes, rotation=90, size=8)
        axis.set_yticks(range(len(classes)), classes if is_leftmost else [], size=8)
    else:
        integer_ticks(axis.xaxis)
        integer_ticks(axis.yaxis)


@figure_style()
def correlations(differences: dict[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """Differences between the correlation matrices of students' logits and the teacher's, on one scale.
    differences: student -> (classes, classes). classes: their names."""
    highest = max(np.nanmax(difference, initial=0) for difference in differences.values())
    has_names, name_width = len(classes) <= NAMED_CLASSES, width_of_names(classes)
    size = max(2.3, 0.15 * len(classes)) if has_names else 2.3
    fig, axes = make_panels([f'{name}\nmean {difference.mean():.3f}' for name, difference in differences.items()],
                            size + 0.4, size + 0.9 + name_width, margin=0.9 + name_width)
    for i, (axis, difference) in enumerate(zip(axes, differences.values(), strict=True)):
        image = axis.imshow(difference, vmin=0, vmax=highest or 1, cmap='magma', interpolation='none')
        label_classes(axis, classes, is_leftmost=i % panel_grid(len(axes))[1] == 0)
        if not has_names:
            axis.set(xlabel='class', ylabel='class')
    fig.colorbar(image, ax=axes, shrink=0.8, label='|difference of correlation|')
    return fig


@figure_style()
def cka(matrices: dict[str, np.ndarray], teacher: str) -> Figure:
    """Linear CKA between the features of students and of their teacher. matrices: student -> (student's, teacher's)."""
    rows, columns = np.max([matrix.shape for matrix in matrices.values()], axis=0)
    fig, axes = make_panels([*matrices], 0.9 + 0.42 * columns, 0.9 + 0.36 * rows, margin=0.9)
    for axis, matrix in zip(axes, matrices.values(), strict=True):
        names = (['stem', *range(1, count - 1), 'emb.'] for count in matrix.shape)
        image = draw_matrix(axis, matrix, *names, size=8)
        axis.set(xlabel=teacher, ylabel='student', aspect='auto')
    fig.colorbar(image, ax=axes, shrink=0.8, label='linear CKA')
    return fig


@figure_style()
def grad_cam(images: np.ndarray, names: Sequence[str], classes: Sequence[str],
             nets: dict[str, tuple[np.ndarray, Sequence[str], Sequence[bool]]]) -> Figure:
    """A row for each image: the image, and for each net the map of the class that it predicts.

    images: uint8 (N, H, W, 3). names, classes: the name and the true class of each image. nets: name -> (maps
    (N, H, W) from 0 to 1, the captions, whether each prediction is right).
    """
    width = 1.75
    titles = [[wrap_text(text, width) for text in texts] for texts in (classes, *(net[1] for net in nets.values()))]
    heights = [width + 0.13 * max(title.count('\n') for title in row) for row in zip(*titles, strict=True)]
    fig = Figure((width * (1 + len(nets)), sum(heights) + 0.5), layout='constrained')
    axes = fig.subplots(len(images), 1 + len(nets), squeeze=False, height_ratios=heights)
    for axis, image, name, title in zip(axes[:, 0], images, names, titles[0], strict=True):
        axis.imshow(image, interpolation='none')
        axis.set_title(title, size=8)
        axis.set_ylabel(name)
    axes[-1, 0].set_xlabel('true class')
    for column, (net, (maps, _, right)), captions in zip(axes.T[1:], nets.items(), titles[1:], strict=True):
        for axis, image, cam, caption, is_right in zip(column, images, maps, captions, right, strict=True):
            heat = matplotlib.colormaps['jet'](cam)[..., :3]
            axis.imshow(0.5 * image / 255 + 0.5 * heat, interpolation='none')
            axis.set_title(caption, size=8, color=INK if is_right else WRONG)
        column[-1].set_xlabel(wrap_text(net, width))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return fig


@figure_style()
def calibration(nets: dict[str, Calibration]) -> Figure:
    """Reliability diagrams: accuracy by confidence, above the number of images with that confidence."""
    rows, columns = panel_grid(len(nets))
    fig = Figure((2.6 * columns, 3.4 * rows), layout='constrained')
    cells = fig.add_gridspec(rows, columns)
    for cell, (name, net) in zip(np.ndindex(rows, columns), nets.items(), strict=False):
        upper, lower = cells[cell].subgridspec(2, 1, height_ratios=(3, 1)).subplots(sharex=True)
        count, confidence, accuracy = (values.numpy() for values in (net.count, net.confidence, net.accuracy))
        left, filled = np.arange(len(count)) / len(count), count > 0
        bar = {'width': 1 / len(count), 'align': 'edge', 'linewidth': 0.5}
        upper.bar(left, accuracy, color=BLUE, edgecolor='white', label='accuracy', **bar)
        upper.bar(left[filled], (confidence - accuracy)[filled], bottom=accuracy[filled], facecolor='none',
                  edgecolor=WRONG, hatch='/////', label='gap to the confidence', **bar)
        upper.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle='--')
        upper.set(title=wrap_text(f'{name}\nECE {net.ece * 100:.1f} %', 2.3), xlim=(0, 1), ylim=(0, 1))
        lower.bar(left, count, color=GREY, edgecolor='white', **bar)
        lower.set(xlabel='confidence', xticks=np.linspace(0, 1, 6), yscale='log', ylim=(0.5, 2 * count.max()))
        lower.yaxis.set_major_formatter('{x:g}')
        lower.yaxis.set_minor_formatter('')
        if cell[1] == 0:
            upper.set_ylabel('accuracy')
            lower.set_ylabel('images')
    fig.legend(*upper.get_legend_handles_labels(), loc='outside lower center', ncols=2)
    return fig


@figure_style()
def confusion(matrices: dict[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """Confusion matrices: share of each true class (row) by predicted class. With many classes, axes have numbers, and
    the most confused pairs are listed. matrices: net -> (classes, classes), numbers of images. classes: their names."""
    count, diagonal = len(classes), np.eye(len(classes), dtype=bool)
    shares = {name: matrix / np.maximum(matrix.sum(1, keepdims=True), 1) for name, matrix in matrices.items()}
    highest = max(0.01, *(share[~diagonal].max(initial=0) for share in shares.values()))
    has_names, has_numbers, name_width = count <= NAMED_CLASSES, count <= NUMBERED_CLASSES, width_of_names(classes)
    size = max(2.3, (0.3 if has_numbers else 0.17) * count) if has_names else 4
    below = name_width if has_names else 0.14 * (MOST_CONFUSED + 1)
    fig, axes = make_panels([*matrices], size + 0.4, size + 0.8 + below, margin=1.6 + name_width)
    for i, (axis, matrix, share) in enumerate(zip(axes, matrices.values(), shares.values(), strict=True)):
        right = axis.imshow(np.ma.masked_where(~diagonal | (share == 0), share), vmin=0, vmax=1, cmap='Blues',
                            interpolation='none')
        wrong = axis.imshow(np.ma.masked_where(diagonal | (share == 0), share), vmin=0, vmax=highest, cmap='OrRd',
                            interpolation='none')
        if has_numbers:
            for (row, column), value in np.ndenumerate(share):
                is_dark = value > 0.6 * (1 if row == column else highest)
                axis.text(column, row, matrix[row, column] or '', ha='center', va='center', size=7, in_layout=False,
                          color='white' if is_dark else 'black')
        is_leftmost = i % panel_grid(len(axes))[1] == 0
        label_classes(axis, classes, is_leftmost)
        if has_names:
            axis.set_xlabel('predicted class')
        else:
            pairs = [f'{number} of {matrix[true].sum()}: {shorten(classes[true])} → {shorten(classes[predicted])}'
                     for true, predicted, number in most_confused(matrix)]
            axis.set_xlabel('\n'.join(['number of the predicted class; most confused:', *pairs]), loc='left', size=8)
        if is_leftmost:
            axis.set_ylabel('true class')
    for image, label in ((wrong, 'predicted as another class'), (right, 'predicted as this class')):
        fig.colorbar(image, ax=axes, shrink=0.7, label=label, format=PercentFormatter(1, decimals=0))
    return fig


def most_confused(matrix: np.ndarray, most: int = MOST_CONFUSED) -> list[tuple[int, int, int]]:
    """(true class, predicted class, images) of the most frequent confusions, from (classes, classes)."""
    wrong = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    pairs = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind='stable')[:most]]
    return [(true, predicted, wrong[true, predicted]) for true, predicted in pairs if wrong[true, predicted]]


@figure_style()
def class_accuracy(nets: dict[str, np.ndarray], classes: Sequence[str], images: Sequence[int]) -> Figure:
    """A line for each class with the accuracy of each net, sorted by the mean of all nets; of many classes the worst
    and the best. nets: net -> (classes,) in percent, NaN for a class without images; the teacher comes first. images:
    of each class."""
    mean = np.mean([*nets.values()], axis=0)
    order = np.argsort(mean, kind='stable')[:np.isfinite(mean).sum()]       # NaN comes last
    half, gap = SHOWN_CLASSES // 2, 0
    if len(order) > SHOWN_CLASSES:
        order, gap = np.concatenate([order[:half], order[-half:]]), 1
    rows = np.arange(len(order)) + gap * (np.arange(len(order)) >= half)
    labels = [f'{classes[i]} ({images[i]})' for i in order]
    fig = Figure((4.5 + INCHES * max(map(len, labels)), 1.2 + 0.2 * len(nets) + 0.19 * len(rows)), layout='constrained')
    axis = fig.add_subplot(xlabel='accuracy of the class (%)', ylabel='class (test images)')
    values = np.array([recall[order] for recall in nets.values()])
    axis.hlines(rows, values.min(0), values.max(0), color=GREY, linewidth=0.8, alpha=0.6)
    for i, (name, recall) in enumerate(zip(nets, values, strict=True)):
        style = {'marker': 'D', 'markersize': 7, 'markerfacecolor': 'none', 'color': INK} if i == 0 else \
            {'marker': 'o', 'markersize': 5, 'alpha': 0.8, 'color': matplotlib.colormaps['tab10'](i - 1)}
        axis.plot(recall, rows, linestyle='none', label=f' {name}', **style)     # Matplotlib omits labels with a '_'
    if gap:
        axis.text(0.5, half, f'{counted(len(classes) - len(order), "class")} between', ha='center', va='center', size=8,
                  transform=axis.get_yaxis_transform(), color=GREY)
    axis.set_yticks(rows, labels, size=8)
    axis.set(ylim=(rows[-1] + 0.7, -0.7), xlim=(max(-2, values.min() - 4), 102))
    axis.grid(axis='x', alpha=0.3)
    fig.legend(loc='outside lower center', ncols=min(2, len(nets)))
    return fig


class ContactSheet(NamedTuple):
    """N test images that a net gets wrong."""

    title: str
    images: np.ndarray          # uint8 (N, H, W, 3)
    numbers: Sequence[int]      # of the images in the test set
    true: Sequence[str]         # true classes
    predicted: Sequence[str]    # predicted classes, with their confidence


@figure_style()
def mistakes(sheets: Sequence[ContactSheet]) -> Figure:
    """A contact sheet of wrong test images for each net, with the true class above and the predicted one below each."""
    width = 1.4
    heights = []
    for sheet in sheets:
        lines = max(wrap_text(text, width).count('\n') for text in (*sheet.true, *sheet.predicted))
        heights.append(0.4 + math.ceil(len(sheet.images) / SHEET_COLUMNS) * (width + 0.3 + 0.26 * lines))
    fig = Figure((width * SHEET_COLUMNS + 0.3, sum(heights)), layout='constrained')
    parts = fig.subfigures(len(sheets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, sheet in zip(parts, sheets, strict=True):
        part.suptitle(wrap_text(sheet.title, width * SHEET_COLUMNS), size=10)
        rows = math.ceil(len(sheet.images) / SHEET_COLUMNS)
        for i, image in enumerate(sheet.images):
            axis = part.add_subplot(rows, SHEET_COLUMNS, i + 1, xticks=[], yticks=[])
            axis.imshow(image, interpolation='none')
            axis.set_title(wrap_text(sheet.true[i], width), size=8)
            axis.set_xlabel(wrap_text(sheet.predicted[i], width), size=8, color=WRONG)
            axis.set_ylabel(f'image {sheet.numbers[i]}', size=7)
    return fig
