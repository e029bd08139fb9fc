"""The style of all figures, their panels, and how they are saved as PNG and SVG."""
import contextlib
import io
import math
import re
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from helper.files import write_atomically

INK = '#010203'     # text, axes and ticks; an SVG in a page shows it in the page's text colour
WRONG, BLUE, GREY = '#d62728', '#1f77b4', '#7f7f7f'
COLUMNS = 4         # panels side by side
INCHES = 0.075      # width of a character
STYLE = {
    'text.color': INK, 'axes.edgecolor': INK, 'axes.labelcolor': INK, 'xtick.color': INK, 'ytick.color': INK,
    'axes.facecolor': 'none', 'font.size': 9, 'axes.titlesize': 'medium', 'legend.frameon': False,
    'text.parse_math': False,       # a name with dollars in it is not a formula, nor is a label of a log axis
    'svg.fonttype': 'none', 'svg.hashsalt': 'figures',
}
STANDALONE = '<style>svg:root {background: white; color: black}</style>'    # does not apply in a page


@contextlib.contextmanager
def figure_style():
    """The style of all figures, as a decorator or for a with statement."""
    with warnings.catch_warnings(), matplotlib.rc_context(STYLE):
        # A PNG shows a box for a character that the font lacks; in an SVG it is text, drawn in the viewer's fonts.
        warnings.filterwarnings('ignore', 'Glyph .* missing from font')
        yield


@figure_style()
def to_svg(fig: Figure) -> str:
    """An <svg> element for a page: no background, INK in the page's colour. The same figure gives the same bytes."""
    _fix_layout(fig)
    buffer = io.StringIO()
    fig.savefig(buffer, format='svg', facecolor='none', metadata=dict.fromkeys(('Date', 'Creator', 'Format', 'Type')))
    text = re.sub(rf'(fill|stroke): {INK}\b', r'\1: currentColor', buffer.getvalue())
    return re.sub('<svg[^>]*>', lambda tag: f'{tag[0]}\n {STANDALONE}', text[text.index('<svg'):], count=1)


@figure_style()
def save_figure(fig: Figure, stem: Path) -> None:
    """Write {stem}.png and {stem}.svg, each atomically."""
    _fix_layout(fig)
    write_atomically(Path(f'{stem}.png'), lambda file: fig.savefig(
        file, format='png', dpi=150, facecolor='white', metadata={'Software': None}))
    write_atomically(Path(f'{stem}.svg'), to_svg(fig).encode())


def _fix_layout(fig):
    """Compute the layout once, so that the PNG and the SVG have the same."""
    if fig.get_layout_engine():
        fig.draw_without_rendering()
        fig.draw_without_rendering()
        fig.set_layout_engine('none')


def panel_grid(count: int) -> tuple[int, int]:
    """(rows, columns) for `count` panels: at most COLUMNS columns, and rows of about equal length."""
    rows = math.ceil(count / COLUMNS)
    return rows, math.ceil(count / rows)


def make_panels(titles: Sequence[str], width: float, height: float, margin: float) -> tuple[Figure, list[Axes]]:
    """A figure with one panel for each title. width, height: of a panel; margin: width beside them; all in inches."""
    rows, columns = panel_grid(len(titles))
    fig = Figure((width * columns + margin, height * rows), layout='constrained')
    return fig, [fig.add_subplot(rows, columns, number, title=wrap_text(title, width))
                 for number, title in enumerate(titles, start=1)]


def wrap_text(text: str, inches: float) -> str:
    """The text with each line wrapped to this width."""
    return '\n'.join(textwrap.fill(line, max(8, int(inches / INCHES))) for line in text.split('\n'))


def shorten(name: str, longest: int = 22) -> str:
    """The name, cut off after `longest` characters."""
    return name if len(name) <= longest else f'{name[:longest - 1]}…'


def integer_ticks(axis: Axis) -> None:
    """Put ticks only at integers, even if there is a single one."""
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def draw_matrix(axis: Axes, matrix: np.ndarray, rows: Sequence, columns: Sequence, size: float | None = None):
    """Draw a matrix of values from 0 to 1, with the values in its cells. Returns the image. size: of the font."""
    image = axis.imshow(matrix, vmin=0, vmax=1, cmap='viridis', interpolation='none')
    for (row, column), value in np.ndenumerate(matrix):
        axis.text(column, row, f'{value:.2f}', ha='center', va='center', size=size,
                  color=INK if np.isnan(value) else 'black' if value > 0.6 else 'white')
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xticks(range(len(columns)), columns)
    return image
