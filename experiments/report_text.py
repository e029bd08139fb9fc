"""A table's results as text for a terminal, and as Markdown, CSV and LaTeX for a paper."""
import csv
import html
import io
from collections.abc import Iterable, Sequence

from analysis.classes import MEANS, two_digits, worst_text
from analysis.runs import chosen_on
from analysis.statistics import signed
from helper.cli import table as aligned

from .conclusion import Conclusion, conclude
from .results import Cell, TableResults

CLASS_HEADS = (*MEANS.values(), 'accuracy of the worst classes')
LATEX_PLUS_MINUS = r' $\pm$ '
LATEX = str.maketrans({**{c: f'\\{c}' for c in '&%$#_{}'}, '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
                       '\\': r'\textbackslash{}'})


def describe_epoch(results: TableResults, epoch: str) -> str:
    """Return 'the best epoch, which is chosen on the test set' or 'the last epoch'."""
    return 'the last epoch' if epoch == 'last' else f'the best epoch, which is chosen on the {results.chosen_on} set'


def figure(mean: float | None, deviation: float | None = None, plus_minus: str = ' ± ') -> str:
    """Return '75.27 ± 0.13'; empty without a mean."""
    if mean is None:
        return ''
    return f'{mean:.2f}' + (f'{plus_minus}{deviation:.2f}' if deviation is not None else '')


def ours(cell: Cell, epoch: str, plus_minus: str = ' ± ') -> str:
    """Return '75.27 ± 0.13', with '2 of 4' if some trials are missing; empty if all are."""
    text = figure(cell.mean(epoch), cell.deviation(epoch), plus_minus)
    return f'{text}, {len(cell.results)} of {len(cell.trials)}' if 0 < len(cell.results) < len(cell.trials) else text


def theirs(cell: Cell, epoch: str) -> str:
    """Return the published figure, marked if it is of the other epoch; empty without one."""
    if not cell.published:
        return ''
    other = '' if cell.published.compares_with(epoch) else f', {cell.published.epoch} epoch'
    return figure(*cell.published[:2]) + other


def difference(cell: Cell, epoch: str) -> str:
    """Return the difference from the published figure, as '+0.12, +0.9 σ'; empty without one."""
    difference = cell.difference(epoch)
    if not difference:
        return ''
    return signed(difference.value, 2) + (f', {signed(difference.in_sigmas, 1)} σ' if difference.sigma else '')


def millions(parameters: int | None) -> str:
    """Return '0.08 M'; '' if the number is unknown."""
    return f'{parameters / 1e6:.2f} M' if parameters else ''


def compression(student: int | None, teacher: int | None) -> str:
    """Return '3.5×', the teacher's parameters divided by the student's; '' if one of them is unknown."""
    return f'{teacher / student:.1f}×' if student and teacher else ''


def plain(results: TableResults) -> str:
    """Return the conclusion and the accuracies for a terminal, with the published ones in brackets."""
    table = results.table
    rows = [(row.label, *(_with_published(results.cell(row, pair), results.epoch) for pair in table.pairs))
            for row in table.rows]
    accuracies = aligned((f'top-1 % ({results.epoch})', *map(str, table.pairs)), rows, '<' + '>' * len(table.pairs))
    return '\n'.join([*conclude(results, results.epoch).lines, '', accuracies])


def notes(results: TableResults, epoch: str) -> list[str]:
    """Return notes on the figures, a sentence each."""
    sentences = []
    published = [cell.published for cell in results.cells.values() if cell.published]
    for kind, text in (('best', 'of the best epoch'), ('last', 'of the last epoch'),
                       ('unknown', 'of an epoch that the source does not name')):
        if names := dict.fromkeys(figure.source for figure in published if figure.epoch == kind):
            sentences.append(f'Published figures {text}: {"; ".join(names)}.')
    for label, (improvement, _) in results.improvement(epoch).items():
        if improvement.left_out:
            pairs = ', '.join(f'{teacher} -> {student}' for teacher, student in improvement.left_out)
            sentences.append(f'{results.table.headline} ARI over {label} leaves out {pairs}: {label} is not better '
                             f'there than the student alone.')
    if names := [f'{cell.row.label}, {cell.pair}' for cell in results.cells.values()
                if not cell.results and any(trial.result for trial in cell.trials)]:
        sentences.append(f'No mean, since the trials have different data, or chose the best epoch on different sets: '
                         f'{"; ".join(names)}.')
    names = [f'{cell.row.label}, {cell.pair}' for cell in results.cells.values()
             if cell.results and cell.results[0]['chosen_on'] == 'validation']
    if names and results.chosen_on != 'validation':     # else the table says it of all
        sentences.append(f'Best epoch chosen on the validation set: {"; ".join(names)}.')
    if names := [trial.run.name for trial in results.trials() if trial.result and trial.result['one_class'][epoch]]:
        sentences.append(f'One class for all images, so that the accuracy is only the share of that class: '
                         f'{", ".join(names)}.')
    return sentences


def markdown(results: TableResults) -> str:
    """Return the accuracies with the published ones, the improvement, and notes."""
    table, epoch, gains = results.table, results.epoch, results.improvement(results.epoch)
    head = ['', *(escape_markdown(str(pair)) for pair in table.pairs)]
    rows = [[escape_markdown(row.label), *(_with_published(results.cell(row, pair), epoch) for pair in table.pairs)]
            for row in table.rows]
    teachers = _teachers(results)
    if gains:
        head.append(f'{escape_markdown(table.headline)} ARI')
        for row, cells in zip(table.rows, rows, strict=True):
            cells.append(_gain(*gains.get(row.label, (None, None))))
        teachers = teachers and [*teachers, '']
    lines = [*markdown_head(table.title, conclude(results, epoch)),
             f'Test top-1 in percent of {describe_epoch(results, epoch)}, mean ± standard deviation of the trials; in '
             f'brackets the published figure.', '', *markdown_table(head, [*rows, *([teachers] if teachers else [])])]
    for note in notes(results, epoch):
        lines += ['', escape_markdown(note)]
    return '\n'.join([*lines, *_class_lines(results)]) + '\n'


def markdown_head(title: str, conclusion: Conclusion) -> list[str]:
    """Return the first lines of a report in Markdown."""
    return [f'# {escape_markdown(title)}', '', *(f'{escape_markdown(line)}\n' for line in conclusion.lines)]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    first, *others = ('| ' + ' | '.join(cells) + ' |' for cells in (head, *rows))
    return [first, '|---' * len(head) + '|', *others]


def escape_markdown(text: str) -> str:
    """Return a text as it is shown in Markdown, with '→' between the nets of a pair."""
    return html.escape(text, quote=False).replace('|', r'\|').replace('-&gt;', '→')


def _class_lines(results):
    """Return the lines of the section on the classes; none if no run has figures of them."""
    rows = [(*map(escape_markdown, (str(pair), cell.row.label, *class_cells(cell))),)
            for pair in results.table.pairs for cell in results.classes(pair)[0]]
    if not rows:
        return []
    head = 'nets', 'method', *CLASS_HEADS
    return ['', '## Classes', '', 'In percent, of the best epoch, the mean of the trials.', '',
            *markdown_table(head, rows)]


def class_cells(cell: Cell) -> list[str]:
    """Return the figures of CLASS_HEADS for a cell."""
    report = cell.class_report
    return [*(two_digits(report[key]) for key in MEANS), worst_text(report['classes'])]


def _teachers(results):
    """Return the row of the teachers' accuracies; empty if none was trained here."""
    teachers = [figure(results.teacher(pair, results.epoch)) for pair in results.table.pairs]
    return ['Teacher', *teachers] if any(teachers) else []


def _with_published(cell: Cell | None, epoch) -> str:
    if cell is None:
        return '–'
    return f'{ours(cell, epoch)} ({theirs(cell, epoch)})'.strip() if cell.published else ours(cell, epoch)


def _gain(improvement, published):
    if improvement is None:
        return ''
    text = '–' if improvement.percent is None else f'{improvement.percent:.2f}%'
    return text + (f' ({published:.2f}%)' if published is not None else '')


def as_csv(results: TableResults) -> str:
    """Return a line for each cell, with all digits for both epochs.

    The difference from the published figure, and sigma, its standard deviation, are of the report's epoch.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(('row', 'method', 'teacher', 'student', 'trials', 'best', 'best_std', 'last', 'last_std',
                     'published', 'published_std', 'source', 'published_epoch', 'epoch', 'difference', 'sigma',
                     'chosen_on'))
    for cell in results.cells.values():
        writer.writerow([cell.row.label, cell.row.method, cell.pair.teacher, cell.pair.student, len(cell.results),
                         *(value(epoch) for epoch in ('best', 'last') for value in (cell.mean, cell.deviation)),
                         *(cell.published or (None,) * 4)[:4], results.epoch,
                         *(cell.difference(results.epoch) or (None, None)),
                         chosen_on(cell.results) if cell.results else None])
    return out.getvalue()


def latex(results: TableResults) -> str:
    """Return a tabular of booktabs, with the highest mean of each column in bold, after comments."""
    table, epoch = results.table, results.epoch

    def line(*cells):
        return ' & '.join(cells) + r' \\'

    def text(cell):
        if cell is None:
            return '--'
        text = ours(cell, epoch, LATEX_PLUS_MINUS)
        return rf'\textbf{{{text}}}' if results.is_highest(cell, epoch) else text

    lines = [*(f'% {sentence}' for sentence in conclude(results, epoch).lines),
             rf'% needs \usepackage{{booktabs}}; test top-1 in percent of {describe_epoch(results, epoch)}',
             r'\begin{tabular}{l' + 'c' * len(table.pairs) + '}', r'\toprule',
             line('Teacher', *(pair.teacher.translate(LATEX) for pair in table.pairs)),
             line('Student', *(pair.student.translate(LATEX) for pair in table.pairs)), r'\midrule',
             *(line(row.label.translate(LATEX), *(text(results.cell(row, pair)) for pair in table.pairs))
               for row in table.rows)]
    if teachers := _teachers(results):
        lines += [r'\midrule', line(*teachers)]
    return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}']) + '\n'
