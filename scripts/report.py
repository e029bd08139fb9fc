"""Write the report of a table with what there is of it, finished or not: HTML, Markdown, CSV and LaTeX.

python scripts/report.py TABLE [--save_dir DIR] [--epoch best|last] [--figures [ROW ...]] [flags that every run had]

TABLE is the name of a table, its file, or the folder that holds its runs, as save/NAME. --epoch says whose accuracies
are shown; without it, those of the epoch that the published figures are of, else the best. --figures also draws what
scripts/visualize.py draws, of each pair's first trials, and puts it into the report.
"""
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from analysis.runs import ACCURACY_KEYS  # noqa: E402
from distiller_zoo import get_method  # noqa: E402
from experiments import report, report_text  # noqa: E402
from experiments.command_line import parse_known_flags  # noqa: E402
from experiments.folder_check import check, file_of, owner_of  # noqa: E402
from experiments.plan import plan_runs  # noqa: E402
from experiments.progress import DONE, progress_of  # noqa: E402
from experiments.table_file import TABLES, find_table, read_table  # noqa: E402
from helper.cli import Parser, path, show  # noqa: E402
from helper.errors import UserError, nearest, run_main  # noqa: E402


def draw(pair, runs, labels, save):
    """The figures of a pair's teacher and its first trials, where they are done."""
    teachers = [run.opt.path_t for run in runs for _, other in run.cells if other == str(pair)
                and hasattr(run.opt, 'distill') and not get_method(run.opt.distill).spec.auxiliary_teacher]
    folders = [str(run.folder) for label in labels for run in runs if (label, str(pair)) in run.cells
               and run.trial == 1]
    if teachers and folders:
        print(f'figures of {pair}')
        drawn = subprocess.run([sys.executable, str(Path(__file__).with_name('visualize.py')), '--path-t', teachers[0],
                                *folders, '--output', str(save / 'figures' / f'{pair.teacher}-{pair.student}')])
        if drawn.returncode:
            raise UserError(f'--figures: those of {pair} could not be drawn, as said above')


def main():
    parser = Parser(description='Write the report of a table with what there is of it.')
    parser.add_argument('table', metavar='TABLE', help='a file in scripts/tables by its name, the path of another, or '
                                                       'the folder of its runs, save/NAME')
    parser.add_argument('--save_dir', type=path, help='where its runs are; else save/TABLE')
    parser.add_argument('--epoch', choices=ACCURACY_KEYS,
                        help="the epoch of the accuracies; not given: that of the table's published figures")
    parser.add_argument('--figures', nargs='*', metavar='ROW',
                        help='draw the figures of these rows, or of all where none is named')
    opt, extra_args = parse_known_flags(parser)
    name = opt.table
    if os.path.isdir(name) and not (TABLES / f'{name}.toml').is_file():
        if os.path.isfile(Path(name) / 'history.json'):
            raise UserError(f'TABLE {name}: is the folder of a run, not of a table; scripts/compare.py shows runs')
        if opt.save_dir:
            raise UserError(f'TABLE {name}: is a folder, and so is --save_dir {opt.save_dir}; give one of the two')
        folder = Path(name)
        opt.save_dir, name = name, file_of(folder) or owner_of(folder) or folder.resolve().name
        name = f'{name}.toml' if os.path.isfile(f'{name}.toml') else name
    table = read_table(find_table(name))
    save = Path(opt.save_dir or f'save/{table.name}')
    if not os.path.isdir(save):
        raise UserError(f'--save_dir {save}: no such folder; scripts/reproduce.py {opt.table} makes it')
    runs = plan_runs(table, str(save), extra_args)
    check(table, runs, read_only=True)
    progress = {run: progress_of(run, save / 'logs') for run in runs}
    if opt.figures is not None:
        labels = [row.label for row in table.rows]
        for label in opt.figures:
            if label not in labels:
                raise UserError(f'--figures {label}: no such row in {table.path}; {nearest(label, labels)}')
        for pair in table.pairs:
            draw(pair, [run for run in runs if progress[run].state == DONE], opt.figures or labels, save)
    show(report_text.plain(report.write(table, save, progress, opt.epoch)))
    print(f'report: {save}/report.html')


if __name__ == '__main__':
    run_main(main)
