"""Write the report of a search: an HTML page and a table in Markdown, like those of a table, and a terminal's text."""
from pathlib import Path

from helper.cli import table as aligned
from helper.errors import UserError
from helper.files import write_atomically

from . import search_charts, search_results
from .final_table import KINDS
from .folder_check import owner_of
from .report import render
from .report_charts import colour, page_svg
from .report_text import escape_markdown, figure, markdown_head, markdown_table, ours
from .search import Search
from .search_conclusion import conclude, leader
from .search_rows import ReportRow, describe, read_final, report_rows
from .study import FEWEST_FOR_IMPORTANCE, IMPORTANCE
from .table_file import OF_SEARCH, SPACES, find_table, read_table


def write(save: Path, extra_args: list[str], trials: int | None = None) -> str:
    """Write report.html and report.md of the search in a folder, and return the text. Raises UserError.

    extra_args: the flags of every run. trials: of each row; None: as many as the row with the most has.
    """
    search = open_search(save, extra_args)
    search.n_trials = trials or max(len(cell.trials()) for cell in search.cells)
    final = read_final(save, extra_args)
    rows = report_rows(search, final)
    for suffix, text in (('html', _page(search, rows, final)), ('md', markdown(search, rows))):
        write_atomically(save / f'report.{suffix}', text.encode())
    return plain(search, rows)


def open_search(save: Path, extra_args: list[str]) -> Search:
    """Return the search in a folder with the rows and pairs that have trials. Raises UserError if there is none."""
    owner, file = owner_of(save)
    space = read_table(find_table(file or (owner or save.name).removesuffix(OF_SEARCH), SPACES), has_ranges=True)
    search = Search(space, save, extra_args, trials=1, has_pruner=True)
    search.open(is_new=False)
    search.cells = [cell for cell in search.cells if cell.trials()]
    if not search.cells:
        raise UserError(f'{save}: no trial has begun yet')
    return search


def plain(search: Search, rows: list[ReportRow]) -> str:
    """Return the conclusion, the final runs, the table of rows with their commands, and importances."""
    lines = [*conclude(rows).lines, '']
    finals = [(row.result.label, row.result.pair, *map(_mean, (row.tuned, row.published_cell, row.auto)))
              for row in rows if row.tuned]
    if finals:
        lines += [aligned(('test top-1 %', 'pair', *KINDS), finals, '<<>>>'), '']
    lines.append(search_results.text(search_results.row_results(search)))
    lines += [f'importance ({IMPORTANCE}), {row.result.label}, {row.result.pair}: {_shares(row)}' for row in rows
              if row.importance]
    return '\n'.join(lines)


def markdown(search: Search, rows: list[ReportRow]) -> str:
    """Return the conclusion, and a table of the rows: values, validation and test accuracy, the highest of these first.
    """
    several_pairs = len({row.result.pair for row in rows}) > 1

    def accuracies(row):
        return row.tuned.mean('best') if row.tuned else 0, row.best.accuracy if row.best else 0

    def cells(row):
        name = f'{row.result.label}, {row.result.pair}' if several_pairs else row.result.label
        return [escape_markdown(name), describe(row.published_values), describe(row.best.values) if row.best else '',
                figure(row.best and row.best.accuracy), *map(_mean, (row.tuned, row.published_cell, row.auto))]

    return '\n'.join([
        *markdown_head(search.table.title, conclude(rows)),
        'Top-1 in percent: of the best trial on the validation set; then on the test set with the best values (tuned), '
        'the published ones, and these with -b auto, mean ± standard deviation of other seeds.', '',
        *markdown_table(('method', 'published values', 'best values', 'validation', *KINDS),
                        map(cells, sorted(rows, key=accuracies, reverse=True)))]) + '\n'


def _mean(cell):
    return ours(cell, 'best') if cell else ''


def _shares(row):
    return ', '.join(f'{name} {share:.0%}' for name, share in row.importance.items())


def _page(search, rows, final):
    table, best = search.table, leader(rows)
    labels = [row.label for row in table.rows if any(other.result.label == row.label for other in rows)]
    index = {label: number for number, label in enumerate(labels)}
    pairs = [*dict.fromkeys(row.result.pair for row in rows)]
    ranked = sorted(rows, key=lambda row: row.best.accuracy if row.best else float('-inf'), reverse=True)
    finals = sorted((row for row in rows if row.tuned), key=lambda row: row.tuned.mean('best'), reverse=True)
    return render(
        'search.html', title=table.title, epochs=['best'], epoch='best', conclusions={'best': conclude(rows)},
        rows=[{'label': label, 'colour': colour(number, False), 'is_headline': best and label == best.result.label}
              for label, number in index.items()],
        index=index, ranked=ranked, finals=finals, best=best, several_pairs=len(pairs) > 1, mean=_mean,
        has_auto=any(row.auto for row in finals),
        describe=describe, shares=_shares, final=final, has_report=(search.save / 'final' / 'report.html').exists(),
        charts=_charts(rows, pairs), importance=IMPORTANCE, fewest=FEWEST_FOR_IMPORTANCE, state=search.summary())


def _charts(rows, pairs):
    """Return pair -> charts (row, title, SVG) of its ranges."""
    charts = {pair: [] for pair in pairs}
    for pair in pairs:
        of_pair = [row for row in rows if row.result.pair == pair]
        shown = search_charts.limits(of_pair)
        for row in of_pair:
            for part in row.parts:
                best = row.best.values.get(part.name) if row.best else None
                title = row.result.label if best is None else f'{row.result.label}: {describe({part.name: best})}'
                charts[pair].append((row, title, page_svg(
                    search_charts.accuracy_by_value(row, part, shown), f'Accuracy by {part.name}, {row.result.label}',
                    f'value-{pairs.index(pair)}-{len(charts[pair])}')))
    return charts
