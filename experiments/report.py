"""The report of a table: one HTML file that needs nothing from outside, and the table as Markdown, CSV and LaTeX."""
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
from .plan import Step, shell
from .progress import FAILED, Progress, summary
from .results import Cell, Found, Trial, collect
from .table_file import Table

PAGE = Path(__file__).with_name('page.html')


def write(table: Table, steps: list[Step], save: Path, now: dict[Step, Progress], epoch: str | None = None) -> Found:
    """Write report.html, .md, .csv and .tex of the runs so far into `save`.

    epoch: of the accuracies, 'best' or 'last'; None: the epoch of the published figures.
    """
    found = collect(table, steps, save / 'logs', now, epoch)
    for name, text in (('report.html', _page(found, save, now)), ('report.md', report_text.markdown(found)),
                       ('report.csv', report_text.as_csv(found)), ('report.tex', report_text.latex(found))):
        write_atomically(save / name, text.encode())
    return found


def _page(found, save, now):
    table = found.table
    template = Environment(autoescape=True).from_string(PAGE.read_text())
    gains = {epoch: found.improvement(epoch) for epoch in ACCURACY_KEYS}
    rows, dialogs = [], []
    for place, row in enumerate(table.rows):
        cells = []
        for pair in table.pairs:
            cell = found.cell(row, pair)
            cells.append(_cell(cell, found, f'cell-{len(dialogs)}') if cell else None)
            if cell:
                dialogs.append(_dialog(cell, f'cell-{len(dialogs)}', save))
        rows.append({'label': row.label, 'place': place, 'colour': report_charts.colour(place), 'cells': cells,
                     'gain': {epoch: _gain(gains[epoch].get(row.label)) for epoch in ACCURACY_KEYS}})
    missing = [trial for cell in found.cells.values() for trial in cell.missing] + \
              [trial for trial in found.others if not trial.run]
    return template.render(
        table=table, pairs=table.pairs, rows=rows, gains=any(gains.values()), dialogs=dialogs, epochs=[*ACCURACY_KEYS],
        chosen=found.epoch, notes={epoch: report_text.notes(found, epoch) for epoch in ACCURACY_KEYS},
        state=summary(table.name, now, 1).partition(', ready')[0], written=time.strftime('%Y-%m-%d %H:%M'),
        teachers=[{epoch: report_text.figure(found.teacher(pair, epoch), None) for epoch in ACCURACY_KEYS}
                  for pair in table.pairs],
        failed=[_missing(trial, save) for trial in dict.fromkeys(missing) if trial.progress.state == FAILED],
        left=[_missing(trial, save) for trial in dict.fromkeys(missing) if trial.progress.state != FAILED],
        curves=_curves(found), learnt=_learnt(found), costs=_costs(found), figures=_figures(save),
        machines=sorted({f'{trial.run["machine"]}; {trial.run["versions"]}' for trial in found.trials() if trial.run}))


def _cell(cell: Cell, found: Found, name):
    done, failed = len(cell.runs), any(trial.progress.state == FAILED for trial in cell.trials)
    return {'id': name, 'failed': failed,
            'note': f'{done} of {len(cell.trials)} trials' if cell.missing and done else '',
            'of': {epoch: {'mean': cell.mean(epoch) if done else '', 'highest': found.is_highest(cell, epoch),
                           'text': report_text.figure(cell.mean(epoch), cell.deviation(epoch)),
                           'published': report_text.theirs(cell, epoch), **_difference(cell, epoch)}
                   for epoch in ACCURACY_KEYS}}


def _difference(cell: Cell, epoch):
    difference, deviations = cell.difference(epoch), cell.in_deviations(epoch)
    if difference is None:
        return {'difference': '', 'way': ''}
    text = report_text.signed(difference, 2)
    return {'difference': text + (f', {report_text.signed(deviations, 1)} σ' if deviations is not None else ''),
            'way': {'+': 'up', '-': 'down'}.get(text[0], '')}


def _gain(gain):
    improvement, published = gain or (None, None)
    percent = improvement and improvement.percent
    return {'value': '' if percent is None else percent,
            'text': '' if not improvement else '–' if percent is None else f'{percent:.2f}',
            'published': '' if published is None else f'{published:.2f}'}


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
            drawn.append({'title': str(pair), 'svg': Markup(to_svg(report_charts.curves(cells)))})
    return drawn


def _learnt(found: Found):
    return [{'title': f'{name.capitalize()} of {cell.row.label}, {cell.pair}',
             'svg': Markup(to_svg(report_charts.learnt(name, cell)))}
            for cell in found.cells.values() for name in report_charts.matrices(cell)]


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
