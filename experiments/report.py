"""Write the report of a table: an HTML page that needs no other file, and the table as Markdown, CSV and LaTeX."""
import base64
import contextlib
import os
import time
from pathlib import Path
from statistics import mean

from jinja2 import Environment, FileSystemLoader

from analysis.runs import ACCURACY_KEYS
from analysis.statistics import CLEAR, beyond_by_chance, signed
from helper.cli import readable_hours
from helper.errors import UserError
from helper.files import open_regular, write_atomically

from . import report_charts, report_text
from .conclusion import conclude
from .planned_run import PlannedRun
from .progress import Progress, summary
from .report_charts import DotAxis, page_svg
from .results import TableResults, read_results
from .table_file import ALONE, Table

PAGES = Path(__file__).with_name('page')


def write(table: Table, save: Path, progress: dict[PlannedRun, Progress], epoch: str | None = None) -> TableResults:
    """Write report.html, .md, .csv and .tex of the runs so far into `save`.

    epoch: of the accuracies, 'best' or 'last'; None: the epoch of the published figures.
    """
    results = read_results(table, progress, save / 'logs', epoch)
    for suffix, text in (('html', _page(results, save, progress)), ('md', report_text.markdown(results)),
                         ('csv', report_text.as_csv(results)), ('tex', report_text.latex(results))):
        write_atomically(save / f'report.{suffix}', text.encode())
    return results


def render(template: str, **values) -> str:
    """Return the HTML of a template in experiments/page/. base.html says which values every page needs."""
    environment = Environment(loader=FileSystemLoader(PAGES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
                              finalize=lambda value: '' if value is None else value)
    environment.globals.update(signed=signed, hours=readable_hours, CLEAR=CLEAR)
    return environment.get_template(template).render(written=time.strftime('%Y-%m-%d %H:%M'), **values)


def _page(results, save, progress):
    def link(path):
        return os.path.relpath(path, save) if path.exists() else ''

    table, epochs = results.table, [*ACCURACY_KEYS]
    gains = {epoch: results.improvement(epoch) for epoch in epochs}
    unfinished = [trial for trial in results.trials() if not trial.result]
    return render(
        'table.html', title=table.title, results=results, table=table, epochs=epochs, epoch=results.epoch, link=link,
        text=report_text, conclusions={epoch: conclude(results, epoch) for epoch in epochs},
        rows=[{'label': row.label, 'colour': report_charts.colour(index, row.label == table.headline),
               'is_headline': row.label == table.headline} for index, row in enumerate(table.rows)],
        baselines=_baselines(results), ranking=_ranking(results), gains=gains if any(gains.values()) else None,
        notes={epoch: report_text.notes(results, epoch) for epoch in epochs},
        state=summary(table.name, progress, 1).partition(', ready')[0],
        failed=[trial for trial in unfinished if trial.has_failed],
        left=[trial for trial in unfinished if not trial.has_failed], by_chance=beyond_by_chance(len(table.seeds)),
        parameters={str(pair): results.parameters(pair) for pair in table.pairs}, dots=_dots(results),
        curves=_curves(results), classes=_classes(results), learnt=_learnt(results), costs=_costs(results),
        figures=_figures(save),
        machines=sorted({f'{trial.result["machine"]}; {trial.result["versions"]}' for trial in results.trials()
                         if trial.result}))


def _baselines(results):
    """Return key -> (row, its name in a text) of the rows over which gains are shown: the student alone, and KD."""
    alone, kd = results.first_row(ALONE), results.first_row('kd')
    return {**({'alone': (alone, 'the student alone')} if alone else {}), **({'kd': (kd, kd.label)} if kd else {})}


def _ranking(results):
    """Return the rows by their mean gain over the first baseline; None without a baseline or a gain.

    Each has index, wins, and for each baseline {epoch: (Difference, pairs)}; the axis covers the first baseline.
    """
    baselines, table = _baselines(results), results.table
    if not baselines:
        return None
    first = next(iter(baselines))
    rows = []
    for index, row in enumerate(table.rows):
        gains = {key: {epoch: results.mean_gain(row, base, epoch) for epoch in ACCURACY_KEYS}
                 for key, (base, _) in baselines.items()}
        wins = {epoch: sum(best.row is row for pair in table.pairs if (best := results.best(pair, epoch)))
                for epoch in ACCURACY_KEYS}
        rows.append({'index': index, 'label': row.label, 'gains': gains, 'wins': wins})
    values = [gain[0].value + sign * CLEAR * (gain[0].sigma or 0) for row in rows
              for gain in row['gains'][first].values() if gain for sign in (-1, 1)]
    if not values:
        return None

    def rank(row):
        gain = row['gains'][first][results.epoch]
        return gain[0].value if gain else float('-inf')

    return {'rows': sorted(rows, key=rank, reverse=True), 'first': first, 'axis': DotAxis(values, with_zero=True)}


def _dots(results):
    """Return the accuracies of each pair, the highest first, with their axis."""
    charts = []
    for pair in results.table.pairs:
        cells = results.pair_cells(pair)
        if cells:
            values = [cell.mean(epoch) + sign * (cell.deviation(epoch) or 0) for cell in cells
                      for epoch in ACCURACY_KEYS for sign in (-1, 1)]
            values += [cell.published.top1 for cell in cells if cell.published]
            charts.append({'pair': pair, 'axis': DotAxis(values), 'cells': sorted(
                ((results.table.rows.index(cell.row), cell) for cell in cells),
                key=lambda item: item[1].mean(results.epoch), reverse=True)})
    return charts


def _curves(results):
    charts = []
    for number, pair in enumerate(results.table.pairs):
        cells = [(results.table.rows.index(cell.row), cell) for cell in results.pair_cells(pair)]
        if cells:
            figure = report_charts.curves(cells, results.table.headline)
            charts.append({'title': str(pair), 'rows': [index for index, _ in cells], 'svg': page_svg(
                figure, f'Accuracy by epoch of {len(cells)} rows, {pair}', f'curves-{number}')})
    return charts


def _classes(results):
    """Return (pair, cells, shown classes) for the pairs whose runs have figures of each class."""
    tables = [(pair, *results.classes(pair)) for pair in results.table.pairs]
    return [(pair, cells, shown) for pair, cells, shown in tables if cells]


def _learnt(results):
    charts = []
    for cell in results.cells.values():
        for name in report_charts.matrices(cell):
            title = f'{name.capitalize()} of {cell.row.label}, {cell.pair}'
            charts.append({'title': title, 'row': results.table.rows.index(cell.row), 'svg': page_svg(
                report_charts.learnt(name, cell), title, f'learnt-{len(charts)}')})
    return charts


def _costs(results):
    """Return the mean minutes and images per second of each row, and its hours; a run that cells share counts once."""
    costs = []
    for index, row in enumerate(results.table.rows):
        runs = {id(run): run for cell in results.cells.values() if cell.row is row for run in cell.results}.values()
        rates = [run['images_per_second'] for run in runs if run['images_per_second']]
        if runs:
            costs.append({'label': row.label, 'index': index, 'runs': len(runs),
                          'minutes': mean(run['seconds'] for run in runs) / 60, 'rate': mean(rates) if rates else None,
                          'hours': sum(run['seconds'] for run in runs) / 3600})
    return costs


def _figures(save: Path):
    """Return the figures of scripts/visualize.py in the table's folder, without those that cannot be read."""
    figures = []
    for file in sorted(save.glob('figures/**/*.svg')):
        with contextlib.suppress(UserError, OSError), open_regular(file, str(file)) as svg_file:
            figures.append({'title': ', '.join(file.relative_to(save / 'figures').with_suffix('').parts),
                            'data': base64.b64encode(svg_file.read()).decode()})
    return figures
