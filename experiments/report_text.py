"""A table as text for a terminal, and as Markdown, CSV and LaTeX for a paper."""
import csv
import html
import io

from helper.cli import table as aligned

from .results import Cell, Found

PLUS_MINUS = r' $\pm$ '       # of LaTeX
EPOCH = {'best': 'the best epoch, which is chosen on the test set', 'last': 'the last epoch'}


def figure(mean: float | None, deviation: float | None, plus_minus: str = ' ± ') -> str:
    """'75.27 ± 0.13'; empty without a mean."""
    if mean is None:
        return ''
    return f'{mean:.2f}' + (f'{plus_minus}{deviation:.2f}' if deviation is not None else '')


def signed(value: float, digits: int) -> str:
    """'+0.12' or '-0.12'; a value that rounds to zero has no sign."""
    text = f'{value:+.{digits}f}'
    return text if float(text) else text[1:]


def ours(cell: Cell, epoch: str, plus_minus: str = ' ± ') -> str:
    """'75.27 ± 0.13', with '2 of 4' if trials are missing; empty if all are."""
    text = figure(cell.mean(epoch), cell.deviation(epoch), plus_minus)
    return f'{text}, {len(cell.runs)} of {len(cell.trials)}' if cell.runs and cell.missing else text


def theirs(cell: Cell, epoch: str) -> str:
    """The published figure, marked if it is of the other epoch; empty if there is none."""
    if not cell.published:
        return ''
    other = '' if cell.published.compares_with(epoch) else f', {cell.published.epoch} epoch'
    return figure(*cell.published[:2]) + other


def plain(found: Found) -> str:
    """For a terminal: the accuracies, and in brackets the published ones."""
    table = found.table
    rows = [(row.label, *(_with_published(found.cell(row, pair), found.epoch) for pair in table.pairs))
            for row in table.rows]
    return aligned((f'top-1 % ({found.epoch})', *map(str, table.pairs)), rows, '<' + '>' * len(table.pairs))


def notes(found: Found, epoch: str) -> list[str]:
    """Notes on these figures, a sentence each."""
    said = []
    cells = [cell for cell in found.cells.values() if cell.published]
    for kind, words in (('best', 'of the best epoch'), ('last', 'of the last epoch'),
                        ('unknown', 'of an epoch that the source does not name')):
        if names := dict.fromkeys(cell.published.source for cell in cells if cell.published.epoch == kind):
            said.append(f'Published figures {words}: {"; ".join(names)}.')
    for label, (improvement, _) in found.improvement(epoch).items():
        if improvement.left_out:
            pairs = ', '.join(f'{teacher} -> {student}' for teacher, student in improvement.left_out)
            said.append(f'{found.table.headline} ARI over {label} leaves out {pairs}: {label} is not better there than '
                        f'the student alone.')
    if names := [f'{cell.row.label}, {cell.pair}' for cell in found.cells.values() if cell.is_mixed]:
        said.append(f'No mean, since the trials have different data: {"; ".join(names)}.')
    if names := [trial.step.name for trial in found.trials() if trial.run and trial.run['one_class'][epoch]]:
        said.append(f'One class for all test images, so that the accuracy is only the share of that class: '
                    f'{", ".join(names)}.')
    return said


def markdown(found: Found) -> str:
    """The accuracies, the published ones beside them, the improvement, and notes."""
    table, epoch = found.table, found.epoch
    gains = found.improvement(epoch)
    lines = [f'# {_plain(table.title)}', '',
             f'Test top-1 in percent of {EPOCH[epoch]}, mean ± standard deviation of the trials; in brackets the '
             f'published figure.', '',
             '| | ' + ' | '.join(str(pair).replace('->', '→') for pair in table.pairs)
             + (f' | {_plain(table.headline)} ARI |' if gains else ' |'),
             '|---' * (len(table.pairs) + 1 + bool(gains)) + '|']
    for row in table.rows:
        texts = [_with_published(found.cell(row, pair), epoch) for pair in table.pairs]
        lines.append(f'| {_plain(row.label)} | ' + ' | '.join(texts)
                     + (f' | {_gain(*gains.get(row.label, (None, None)))} |' if gains else ' |'))
    teachers = [figure(found.teacher(pair, epoch), None) for pair in table.pairs]
    if any(teachers):
        lines.append('| Teacher | ' + ' | '.join(teachers) + (' | |' if gains else ' |'))
    for note in notes(found, epoch):
        lines += ['', _plain(note).replace('-&gt;', '→')]
    return '\n'.join(lines) + '\n'


def _plain(text):
    """Text as Markdown shows it: no HTML, no end of a cell."""
    return html.escape(text, quote=False).replace('|', r'\|')


def _with_published(cell: Cell | None, epoch) -> str:
    if cell is None:
        return '–'
    return f'{ours(cell, epoch)} ({theirs(cell, epoch)})'.strip() if cell.published else ours(cell, epoch)


def _gain(improvement, published):
    if improvement is None:
        return ''
    text = '–' if improvement.percent is None else f'{improvement.percent:.2f}%'
    return text + (f' ({published:.2f}%)' if published is not None else '')


def as_csv(found: Found) -> str:
    """A line for each cell, with all digits of both epochs' figures; the difference is of the report's epoch."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(('row', 'method', 'teacher', 'student', 'trials', 'best', 'best_std', 'last', 'last_std',
                     'published', 'published_std', 'source', 'published_epoch', 'epoch', 'difference', 'in_deviations'))
    for cell in found.cells.values():
        writer.writerow([cell.row.label, cell.row.method, cell.pair.teacher, cell.pair.student, len(cell.runs),
                         *(value(epoch) for epoch in ('best', 'last') for value in (cell.mean, cell.deviation)),
                         *(cell.published or (None,) * 4), found.epoch, cell.difference(found.epoch),
                         cell.in_deviations(found.epoch)])
    return out.getvalue()


def latex(found: Found) -> str:
    """A tabular with booktabs; the highest mean of each column is bold."""
    table, epoch = found.table, found.epoch
    lines = [rf'% needs \usepackage{{booktabs}}; test top-1 in percent of {EPOCH[epoch]}',
             r'\begin{tabular}{l' + 'c' * len(table.pairs) + '}', r'\toprule',
             'Teacher' + ''.join(f' & {_escape(pair.teacher)}' for pair in table.pairs) + r' \\',
             'Student' + ''.join(f' & {_escape(pair.student)}' for pair in table.pairs) + r' \\', r'\midrule']
    for row in table.rows:
        texts = []
        for pair in table.pairs:
            cell = found.cell(row, pair)
            text = ours(cell, epoch, PLUS_MINUS) if cell else '--'
            texts.append(rf'\textbf{{{text}}}' if cell and found.is_highest(cell, epoch) else text)
        lines.append(' & '.join([_escape(row.label), *texts]) + r' \\')
    teachers = [figure(found.teacher(pair, epoch), None) for pair in table.pairs]
    if any(teachers):
        lines += [r'\midrule', ' & '.join(['Teacher', *teachers]) + r' \\']
    return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}']) + '\n'


def _escape(text):
    return ''.join('\\' + c if c in '&%$#_{}' else {'~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
                                                      '\\': r'\textbackslash{}'}.get(c, c) for c in text)
