"""Write the report of a table with what there is of it, finished or not: HTML, Markdown, CSV and LaTeX.

python scripts/report.py TABLE [--save_dir DIR] [flags that every run had]
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from grid import report  # noqa: E402
from grid.state import progress  # noqa: E402
from grid.steps import steps_of  # noqa: E402
from grid.table_file import find, read  # noqa: E402
from helper.cli import Parser, path  # noqa: E402
from helper.errors import UserError, run_main  # noqa: E402


def main():
    parser = Parser(description='Write the report of a table with what there is of it.')
    parser.add_argument('table', metavar='TABLE', help='the name of a file in scripts/tables, or the path of one')
    parser.add_argument('--save_dir', type=path, help='where its runs are; else save/TABLE')
    opt, more = parser.parse_known()
    table = read(find(opt.table))
    save = Path(opt.save_dir or f'save/{table.name}')
    if not save.is_dir():
        raise UserError(f'--save_dir {save}: no such folder; scripts/reproduce.py {opt.table} makes it')
    steps = steps_of(table, str(save), more)
    now = {step: progress(step, save / 'logs') for step in steps}
    print(f'report: {report.write(table, steps, save, now)}')


if __name__ == '__main__':
    run_main(main)
