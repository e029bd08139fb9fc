"""The report of a table: one HTML file that needs nothing from outside, and the table as Markdown, CSV and LaTeX."""
import base64
import contextlib
import os
import time
from pathlib import Path
from statistics import mean

from jinja2 import Environment
from markupsafe import Markup

from helper.errors import UserError
from helper.files import open_regular, write_atomically
from results.figures import svg

from . import charts, formats
from .cells import Cell, Found, Trial, collect
from .state import FAILED, Progress, summary
from .steps import Step, shell
from .table_file import Table

PAGE = Path(__file__).with_name('page.html')


def write(table: Table, steps: list[Step], save: Path, now: dict[Step, Progress]) -> Found:
    """Write report.html, .md, .csv and .tex into `save`, with what there is of the table."""
    found = collect(table, steps, save / 'logs', now)
    for name, text in (('report.html', _page(found, save, now)), ('report.md', formats.markdown(found)),
                       ('report.csv', formats.as_csv(found)), ('report.tex', formats.latex(found))):
        write_atomically(save / name, lambda file, text=text: file.write(text.encode()))
    return found


def _page(found, save, now):
    table = found.table
    template = Environment(autoescape=True).from_string(PAGE.read_text())
    gains = found.improvement()
    rows, dialogs = [], []
    for place, row in enumerate(table.rows):
        cells = []
        for pair in table.pairs:
            cell = found.cell(row, pair)
            cells.append(_cell(cell, found, f'cell-{len(dialogs)}') if cell else None)
            if cell:
                dialogs.append(_dialog(cell, f'cell-{len(dialogs)}', save))
        percent, _, theirs = gains.get(row.label, (None, 0, None))
        rows.append({'label': row.label, 'place': place, 'colour': charts.colour(place), 'cells': cells,
                     'gain_value': '' if percent is None else percent,
                     'gain': '' if percent is None else f'{percent:.2f}',
                     'gain_published': '' if theirs is None else f'{theirs:.2f}'})
    missing = [trial for cell in found.cells.values() for trial in cell.missing] + \
              [trial for trial in found.others if not trial.run]
    return template.render(
        table=table, pairs=table.pairs, rows=rows, gains=bool(gains), dialogs=dialogs,
        state=summary(table.name, now, 1).partition(', ready')[0], written=time.strftime('%Y-%m-%d %H:%M'),
        teachers=[formats.figure(found.teacher(pair), None) for pair in table.pairs],
        failed=[_missing(trial, save) for trial in dict.fromkeys(missing) if trial.progress.state == FAILED],
        left=[_missing(trial, save) for trial in dict.fromkeys(missing) if trial.progress.state != FAILED],
        curves=_curves(found), learnt=_learnt(found), costs=_costs(found), figures=_figures(save),
        machines=sorted({f'{trial.run["machine"]}; {trial.run["versions"]}' for trial in _trials(found) if trial.run}))


def _trials(found: Found):
    return dict.fromkeys([trial for cell in found.cells.values() for trial in cell.trials] + found.others)


def _cell(cell: Cell, found: Found, name):
    highest = max((other.mean() for other in found.cells.values() if other.pair is cell.pair and other.runs),
                  default=None)
    done, failed = len(cell.runs), [trial for trial in cell.trials if trial.progress.state == FAILED]
    note = f'{done} of {len(cell.trials)} trials' if cell.missing and done else ''
    difference = ''
    if cell.difference is not None:
        difference = f'{cell.difference:+.2f}' + (f', {cell.in_deviations:+.1f} σ' if cell.in_deviations else '')
    return {'id': name, 'failed': bool(failed), 'note': note, 'difference': difference,
            'highest': done and cell.mean() == highest, 'way': 'up' if difference.startswith('+') else 'down',
            'published': formats.figure(*cell.published[:2]) if cell.published else '',
            **{kind: {'mean': cell.mean(key) if done else '',
                      'text': formats.figure(cell.mean(key), cell.deviation(key))}
               for kind, key in (('best', 'top1'), ('last', 'last'))}}


def _dialog(cell: Cell, name, save):
    return {'id': name, 'title': f'{cell.row.label}, {cell.pair}',
            'trials': [_details(trial, number, save) for number, trial in enumerate(cell.trials, 1)]}


def _details(trial: Trial, number, save):
    step, run = trial.step, trial.run
    text = f'best epoch {run["top1"]:.2f}, last {run["last"]:.2f}, {run["seconds"] / 60:.1f} minutes' if run else \
        f'{trial.progress.state}, {trial.progress.part:.0%} of the epochs'
    return {'title': f'trial {number}, seed {step.opt.seed}', 'text': text,
            'log': _link(trial.log, save), 'folder': _link(step.folder, save),
            'where': f'{run["machine"]}; {run["versions"]}' if run else '',
            'command': run and run['command'] or shell(step.command([])), 'last': '\n'.join(trial.last_lines)}


def _link(path, save):
    return os.path.relpath(path, save) if path.exists() else ''


def _missing(trial: Trial, save):
    state = trial.progress.state
    return {'what': f'{trial.step.name}: {state}' + ('' if state == FAILED else f', {trial.progress.part:.0%} done'),
            'log': _link(trial.log, save), 'last': '\n'.join(trial.last_lines)}


def _curves(found: Found):
    drawn = []
    for pair in found.table.pairs:
        cells = [(place, cell) for place, row in enumerate(found.table.rows)
                 if (cell := found.cell(row, pair)) and cell.runs]
        if cells:
            drawn.append({'title': str(pair), 'svg': Markup(svg(charts.curves(cells)))})
    return drawn


def _learnt(found: Found):
    return [{'title': f'{name.capitalize()} of {cell.row.label}, {cell.pair}',
             'svg': Markup(svg(charts.learnt(name, cell)))}
            for cell in found.cells.values() for name in charts.matrices(cell)]


def _costs(found: Found):
    costs = []
    for place, row in enumerate(found.table.rows):
        runs = {id(run): run for cell in found.cells.values() if cell.row is row for run in cell.runs}.values()
        rates = [run['images_per_second'] for run in runs if run['images_per_second']]
        if runs:
            costs.append({'label': row.label, 'place': place, 'runs': len(runs),
                          'minutes': mean(run['seconds'] for run in runs) / 60, 'rate': mean(rates) if rates else None})
    return costs


def _figures(save: Path):
    """What scripts/visualize.py has drawn into the table's folder. What cannot be read is left out."""
    found = []
    for file in sorted(save.glob('figures/**/*.svg')):
        with contextlib.suppress(UserError, OSError), open_regular(file, str(file)) as svg_file:
            found.append({'title': ', '.join(file.relative_to(save / 'figures').with_suffix('').parts),
                          'data': base64.b64encode(svg_file.read()).decode()})
    return found
