"""Write the report of a table: an HTML page that needs no other file, and the table as Markdown, CSV and LaTeX."""
import base64
import contextlib
import os
import time
from pathlib import Path
from statistics import mean

from jinja2 import Environment
from markupsafe import Markup

from analysis.figures import to_svg
from analysis.runs import ACCURACY_KEYS
from helper.errors import UserError
from helper.files import open_regular, write_atomically

from . import report_charts, report_text
from .planned_run import PlannedRun
from .progress import Progress, summary
from .results import TableResults, collect
from .table_file import Table

PAGE = Path(__file__).with_name('page.html')


def write(table: Table, save: Path, progress: dict[PlannedRun, Progress], epoch: str | None = None) -> TableResults:
    """Write report.html, .md, .csv and .tex of the runs so far into `save`.

    epoch: of the accuracies, 'best' or 'last'; None: the epoch of the published figures.
    """
    results = collect(table, progress, save / 'logs', epoch)
    for suffix, text in (('html', _page(results, save, progress)), ('md', report_text.markdown(results)),
                         ('csv', report_text.as_csv(results)), ('tex', report_text.latex(results))):
        write_atomically(save / f'report.{suffix}', text.encode())
    return results


def _page(results, save, progress):
    def link(path):
        return os.path.relpath(path, save) if path.exists() else ''

    table = results.table
    gains = {epoch: results.improvement(epoch) for epoch in ACCURACY_KEYS}
    unfinished = [trial for trial in results.trials() if not trial.result]
    environment = Environment(autoescape=True, finalize=lambda value: '' if value is None else value)
    return environment.from_string(PAGE.read_text()).render(
        results=results, table=table, rows=table.rows, pairs=table.pairs, epochs=[*ACCURACY_KEYS], link=link,
        text=report_text, colour=report_charts.colour,
        gains=gains if any(gains.values()) else None, notes={epoch: report_text.notes(results, epoch)
                                                             for epoch in ACCURACY_KEYS},
        state=summary(table.name, progress, 1).partition(', ready')[0], written=time.strftime('%Y-%m-%d %H:%M'),
        failed=[trial for trial in unfinished if trial.has_failed],
        left=[trial for trial in unfinished if not trial.has_failed],
        curves=_curves(results), classes=_classes(results), learnt=_learnt(results), costs=_costs(results),
        figures=_figures(save),
        machines=sorted({f'{trial.result["machine"]}; {trial.result["versions"]}' for trial in results.trials()
                         if trial.result}))


def _curves(results):
    charts = []
    for pair in results.table.pairs:
        cells = [(index, cell) for index, row in enumerate(results.table.rows)
                 if (cell := results.cell(row, pair)) and cell.results]
        if cells:
            charts.append({'title': str(pair), 'svg': Markup(to_svg(report_charts.curves(cells)))})
    return charts


def _classes(results):
    """Return (pair, cells, shown classes) for the pairs whose runs have figures of each class."""
    tables = [(pair, *results.classes(pair)) for pair in results.table.pairs]
    return [(pair, cells, shown) for pair, cells, shown in tables if cells]


def _learnt(results):
    return [{'title': f'{name.capitalize()} of {cell.row.label}, {cell.pair}',
             'svg': Markup(to_svg(report_charts.learnt(name, cell)))}
            for cell in results.cells.values() for name in report_charts.matrices(cell)]


def _costs(results):
    """Return the mean minutes and images per second of each row; a run that cells share counts once."""
    costs = []
    for index, row in enumerate(results.table.rows):
        runs = {id(run): run for cell in results.cells.values() if cell.row is row for run in cell.results}.values()
        rates = [run['images_per_second'] for run in runs if run['images_per_second']]
        if runs:
            costs.append({'label': row.label, 'index': index, 'runs': len(runs),
                          'minutes': mean(run['seconds'] for run in runs) / 60, 'rate': mean(rates) if rates else None})
    return costs


def _figures(save: Path):
    """Return the figures of scripts/visualize.py in the table's folder, without those that cannot be read."""
    figures = []
    for file in sorted(save.glob('figures/**/*.svg')):
        with contextlib.suppress(UserError, OSError), open_regular(file, str(file)) as svg_file:
            figures.append({'title': ', '.join(file.relative_to(save / 'figures').with_suffix('').parts),
                            'data': base64.b64encode(svg_file.read()).decode()})
    return figures
