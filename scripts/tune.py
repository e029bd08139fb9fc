"""Search for the weights and other flags of methods, by the accuracy on a validation set.

python scripts/tune.py SPACE --trials N [--minutes M] [--status] [--rows ROW,...] [--pairs PAIR,...] [--jobs N]
    [--cluster slurm] [flags of every run]

SPACE is the name of a file in scripts/spaces/, or the path of another: docs/tuning.md. Each row and pair gets N trials.
After any interruption the same command continues; on one file system several machines may give it at the same time.
Flags that this script does not know go to every run: --data_dir /data --fast.
"""
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments import search_results
from experiments.devices import Devices
from experiments.folder_check import check, claim
from experiments.local import Local
from experiments.planned_run import check_batches, parse_known_flags, select_cells
from experiments.progress import DONE, failures
from experiments.search import Search
from experiments.study import optuna
from experiments.table_file import SPACES, find_table, read_table
from helper.cli import Parser, number, path, show
from helper.errors import run_main
from helper.files import FolderLock, make_folder


def options():
    """Return the options of this script, and the flags of every run."""
    parser = Parser(description='Search for the flags of methods by the accuracy on a validation set.')
    add = parser.add_argument
    add('space', metavar='SPACE', help='the name of a file in scripts/spaces, or the path of another')
    add('--trials', type=number(int, low=1, high=10**5), default=20, help='trials of each row and pair')
    add('--minutes', type=number(float, above=0),
        help='stop after so many minutes; the same command continues; default: no limit')
    add('--save_dir', type=path, help='the folder of the search; default: save/SPACE')
    add('--rows', type=path, metavar='ROW,...', help='search only these rows; default: all')
    add('--pairs', type=path, metavar='PAIR,...', help="search only these pairs, as 'vgg13 -> vgg8'")
    add('--status', action='store_true', help='print the results so far, and stop')
    add('--no-prune', dest='prune', action='store_false', help='train every trial to its last epoch')
    add('--jobs', type=number(int, low=1, high=10000),
        help='trials at the same time; default: one for each GPU or core')
    add('--gpu_id', type=path, help='GPUs to use, with commas, or cpu; default: all')
    add('--gpus', type=number(int, low=0, high=64),
        help='GPUs of each trial, which divide its batch; 0: none; default: one if there is any')
    return parse_known_flags(parser)


def main():
    began = time.monotonic()
    opt, extra_args = options()
    optuna()        # an error if it is missing
    space = read_table(find_table(opt.space, SPACES), has_ranges=True)
    save = Path(opt.save_dir or f'save/{space.name}')
    search = Search(select_cells(space, opt.rows, opt.pairs), save, extra_args, opt.trials, opt.prune)
    if opt.status:
        search.open(is_new=False)
        print(search.summary())
        show(search_results.text(search_results.collect(search)))
        return

    search.check_ranges()
    devices = Devices(opt.gpu_id, opt.jobs, opt.gpus, 1)
    check_batches([*search.planner.runs.values()], devices.gpus or 1)
    until = began + 60 * opt.minutes if opt.minutes else math.inf
    begin(search, devices, until)
    Local(space.name, search.logs, search.teacher_runs(), devices, 1, search, until).run()
    show(search_results.text(search_results.collect(search)))
    if not search.is_over():
        print('not all is done; the same command continues', file=sys.stderr)
        sys.exit(1)


def begin(search, devices, until):
    """Open the studies and train the teachers; if another process is doing that, wait for it."""
    for folder in (search.save, search.logs):
        make_folder(folder, f'--save_dir {search.save}')
    lock = FolderLock(search.save, shared=True)
    if not lock.take():
        print(f'{search.save}: another process is at work there; waiting for it', flush=True)
        while not lock.take():
            time.sleep(1)
    try:
        teachers = search.teacher_runs()
        check(search.table, teachers)
        claim(search.table, search.save)
        search.open()
        progress = Local(f'{search.table.name}, teachers', search.logs, teachers, devices, 1, until=until).run()
    finally:
        lock.release()
    if any(now.state != DONE for now in progress.values()):
        print(failures(progress, search.logs), end='')
        print('not all teachers are done; the same command continues', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    run_main(main)
