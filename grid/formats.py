"""A table as text for a terminal, and as Markdown, CSV and LaTeX for a paper."""
import csv
import html
import io

from helper.cli import table as aligned

from .cells import Cell, Found

PLUS_MINUS = r' $\pm$ '       # of LaTeX


def figure(mean: float | None, deviation: float | None, plus_minus: str = ' ± ') -> str:
    """'75.27 ± 0.13'; nothing where there is no mean."""
    if mean is None:
        return ''
    return f'{mean:.2f}' + (f'{plus_minus}{deviation:.2f}' if deviation is not None else '')


def plain(found: Found) -> str:
    """For a terminal: the best epoch's accuracies, and in brackets the published ones."""
    table = found.table
    rows = [(row.label, *(_with_published(found.cell(row, pair)) for pair in table.pairs)) for row in table.rows]
    return aligned(('top-1 %', *map(str, table.pairs)), rows, '<' + '>' * len(table.pairs))


def markdown(found: Found) -> str:
    """The best epoch's accuracies, the published ones below each pair's, and the improvement."""
    table, gains = found.table, found.improvement()
    lines = [f'# {_plain(table.title)}', '',
             'Test top-1 in percent of the best epoch (which is chosen on the test set), mean ± standard deviation of '
             'the trials; in brackets the published figure.', '',
             '| | ' + ' | '.join(str(pair).replace('->', '→') for pair in table.pairs)
             + (' | ARI |' if gains else ' |'),
             '|---' * (len(table.pairs) + 1 + bool(gains)) + '|']
    for row in table.rows:
        texts = [_with_published(found.cell(row, pair)) for pair in table.pairs]
        gain = gains.get(row.label)
        lines.append(f'| {_plain(row.label)} | ' + ' | '.join(texts) + (f' | {_gain(gain)} |' if gains else ' |'))
    teachers = [figure(found.teacher(pair), None) for pair in table.pairs]
    if any(teachers):
        lines.append('| Teacher | ' + ' | '.join(teachers) + (' | |' if gains else ' |'))
    return '\n'.join(lines) + '\n'


def _plain(text):
    """Text as Markdown shows it: no HTML, no end of a cell."""
    return html.escape(text, quote=False).replace('|', r'\|')


def _with_published(cell: Cell | None) -> str:
    if cell is None:
        return '–'
    text = figure(cell.mean(), cell.deviation())
    if cell.runs and cell.missing:
        text += f', {len(cell.runs)} of {len(cell.trials)}'
    return f'{text} ({figure(*cell.published[:2])})'.strip() if cell.published else text


def _gain(gain):
    if gain is None:
        return ''
    percent, _, theirs = gain
    return f'{percent:.2f}%' + (f' ({theirs:.2f}%)' if theirs is not None else '')


def as_csv(found: Found) -> str:
    """A line for each cell, all figures with all their digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(('row', 'method', 'teacher', 'student', 'trials', 'best', 'best_std', 'last', 'last_std',
                     'published', 'published_std', 'source', 'difference', 'in_deviations'))
    for cell in found.cells.values():
        published = cell.published or (None, None, None)
        writer.writerow([cell.row.label, cell.row.method, cell.pair.teacher, cell.pair.student, len(cell.runs),
                         cell.mean(), cell.deviation(), cell.mean('last'), cell.deviation('last'), *published,
                         cell.difference, cell.in_deviations])
    return out.getvalue()


def latex(found: Found) -> str:
    """A tabular with booktabs; the best mean of each column is bold."""
    table = found.table
    highest = {str(pair): max((cell.mean() for cell in found.cells.values() if cell.pair is pair and cell.runs),
                              default=None) for pair in table.pairs}
    lines = [r'% needs \usepackage{booktabs}', r'\begin{tabular}{l' + 'c' * len(table.pairs) + '}', r'\toprule',
             'Teacher' + ''.join(f' & {_escape(pair.teacher)}' for pair in table.pairs) + r' \\',
             'Student' + ''.join(f' & {_escape(pair.student)}' for pair in table.pairs) + r' \\', r'\midrule']
    for row in table.rows:
        texts = []
        for pair in table.pairs:
            cell = found.cell(row, pair)
            text = figure(cell.mean(), cell.deviation(), PLUS_MINUS) if cell else '--'
            texts.append(rf'\textbf{{{text}}}' if cell and cell.runs and cell.mean() == highest[str(pair)] else text)
        lines.append(' & '.join([_escape(row.label), *texts]) + r' \\')
    return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}']) + '\n'


def _escape(text):
    return ''.join('\\' + c if c in '&%$#_{}' else {'~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
                                                      '\\': r'\textbackslash{}'}.get(c, c) for c in text)
