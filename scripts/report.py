"""Write the report of a table or a search, finished or not: HTML and Markdown, for a table also CSV and LaTeX.

python scripts/report.py TABLE [--save_dir DIR] [--epoch best|last] [--figures [ROW ...]]

TABLE is the name of a table, its file, or the folder of its runs or of a search of tune.py, such as save/NAME. --epoch
selects the accuracies; if omitted, those of the epoch that the published figures report, else of the best one.
--figures adds the figures of scripts/visualize.py, for the first trials of each pair. The runs have the flags that the
folder notes; for an older folder without that note, give them here.
"""
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from analysis.runs import ACCURACY_KEYS
from distiller_zoo import get_method
from experiments import report, report_text, search_report
from experiments.folder_check import check, flags_of, owner_of
from experiments.plan import plan_runs
from experiments.planned_run import parse_known_flags
from experiments.progress import DONE, progress_of
from experiments.table_file import OF_SEARCH, TABLES, find_table, read_table
from helper.cli import Parser, path, show, word_list
from helper.errors import UserError, nearest, run_main


def draw_figures(pair, runs, labels, save):
    """Run visualize.py on a pair's teacher and the first trials of these rows, as far as `runs` has them."""
    teachers = [run.opt.path_t for run in runs for _, name in run.cells if name == str(pair)
                and hasattr(run.opt, 'distill') and not get_method(run.opt.distill).spec.auxiliary_teacher]
    folders = [str(run.folder) for label in labels for run in runs if (label, str(pair)) in run.cells
               and run.trial == 1]
    if teachers and folders:
        print(f'figures of {pair}')
        result = subprocess.run([sys.executable, str(Path(__file__).with_name('visualize.py')), '--path-t', teachers[0],
                                 *folders, '--output', str(save / 'figures' / f'{pair.teacher}-{pair.student}')])
        if result.returncode:
            raise UserError(f'--figures: those of {pair} could not be drawn; see the error above')


def parse_table(opt):
    """(name or file of the table, folder of its runs or None) from TABLE and --save_dir. Raises UserError."""
    if not os.path.isdir(opt.table) or (TABLES / f'{opt.table}.toml').is_file():
        return opt.table, opt.save_dir
    folder, source = Path(opt.table), f'TABLE {opt.table}'
    if (folder / 'history.json').is_file():
        raise UserError(f'{source}: is the folder of a run, not of a table; scripts/compare.py shows runs')
    if opt.save_dir:
        raise UserError(f'{source}: is a folder, and so is --save_dir {opt.save_dir}; give one of the two')
    owner, file = owner_of(folder)
    name = file or owner or folder.resolve().name
    return f'{name}.toml' if os.path.isfile(f'{name}.toml') else name, folder


def is_search(folder: Path) -> bool:
    """Return whether the folder is of a search."""
    return (owner_of(folder)[0] or '').endswith(OF_SEARCH)


def main():
    parser = Parser(description='Write the report of a table or a search, finished or not.')
    parser.add_argument('table', metavar='TABLE', help='the name of a table in scripts/tables, another table file, or '
                                                       'the folder of a table or a search, save/NAME')
    parser.add_argument('--save_dir', type=path, help='the folder of its runs; if omitted, save/TABLE')
    parser.add_argument('--epoch', choices=ACCURACY_KEYS,
                        help="the epoch of the accuracies; if omitted, as in the table's published figures")
    parser.add_argument('--figures', nargs='*', metavar='ROW', help='draw the figures of these rows; alone: of all')
    opt, extra_args = parse_known_flags(parser)
    name, folder = parse_table(opt)
    if folder and is_search(Path(folder)):
        for flag in ('epoch', 'figures'):
            if (value := getattr(opt, flag)) is not None:
                raise UserError(f'--{flag} {word_list(value)}: not for a search; give the folder of its final runs, '
                                f'{folder}/final')
        show(search_report.write(Path(folder), extra_args or flags_of(Path(folder))))
        print(f'report: {folder}/report.html')
        return
    table = read_table(find_table(name))
    save = Path(folder or f'save/{table.name}')
    if not os.path.isdir(save):
        raise UserError(f'--save_dir {save}: no such folder; scripts/reproduce.py {opt.table} makes it')
    runs = plan_runs(table, str(save), extra_args or flags_of(save))
    check(table, save, runs, read_only=True)
    progress = {run: progress_of(run, save / 'logs') for run in runs}
    if opt.figures is not None:
        labels = [row.label for row in table.rows]
        for label in opt.figures:
            if label not in labels:
                raise UserError(f'--figures {label}: no such row in {table.path}; {nearest(label, labels)}')
        finished = [run for run in runs if progress[run].state == DONE]
        for pair in table.pairs:
            draw_figures(pair, finished, opt.figures or labels, save)
    show(report_text.plain(report.write(table, save, progress, opt.epoch)))
    print(f'report: {save}/report.html')


if __name__ == '__main__':
    run_main(main)
