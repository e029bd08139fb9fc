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
from experiments import search_report, search_results, slurm
from experiments.devices import Devices
from experiments.final_table import KINDS, PUBLISHED, TUNED, final_runs, make_final
from experiments.folder_check import check, flags_of, note_owner
from experiments.local import Local
from experiments.planned_run import check_batches, parse_known_flags, select_cells
from experiments.progress import DONE, failures, progress_of
from experiments.run_table import make_folders, run_table
from experiments.search import Search
from experiments.study import optuna
from experiments.table_file import SPACES, find_table, read_table
from helper.cli import Parser, name_list, number, path, show
from helper.errors import run_main
from helper.files import FolderLock


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
    add('--retry', action='store_true', help='also try the values of failed trials again')
    add('--final_seeds', type=number(int, low=0, high=1000), default=3,
        help='after the search, train the best and the published values of each row with so many seeds; 0: do not')
    add('--final_rows', type=name_list(KINDS), default=f'{TUNED},{PUBLISHED}', metavar='ROW,...',
        help='what these runs train: the best values (tuned), the published ones, these with -b auto (auto) for '
             'methods that accept it')
    add('--no-prune', dest='prune', action='store_false', help='train every trial to its last epoch')
    add('--jobs', type=number(int, low=1, high=10000),
        help='trials at the same time; default: one for each GPU or core, 4 with Slurm')
    add('--gpu_id', type=path, help='GPUs to use, with commas, or cpu; default: all')
    add('--gpus', type=number(int, low=0, high=64),
        help='GPUs of each trial, which divide its batch; 0: none; default: one if there is any')
    add('--cluster', choices=('local', 'slurm'), default='local', help='run here, or as jobs of Slurm')
    slurm.add_arguments(parser.group('--cluster slurm'))
    opt, extra_args = parse_known_flags(parser)
    slurm.check_arguments(opt, parser)
    opt.trial_parallel = 1
    return opt, extra_args


def main():
    began = time.monotonic()
    opt, extra_args = options()
    optuna()        # an error if it is missing
    space = read_table(find_table(opt.space, SPACES), has_ranges=True)
    save = Path(opt.save_dir or f'save/{space.name}')
    if opt.status:
        extra_args = extra_args or flags_of(save)
    search = Search(select_cells(space, opt.rows, opt.pairs), save, extra_args, opt.trials, opt.prune)
    if opt.status:
        search.open(is_new=False)
        print(search.summary())
        show(search_results.text(search_results.row_results(search)))
        return

    search.check_ranges()
    until = began + 60 * opt.minutes if opt.minutes else math.inf
    runner = make_runner(opt, space.name, save, until)
    check_batches([*search.planner.runs.values()], runner.gpus or 1)
    teachers = begin(search, runner, opt.retry)
    runner.run(teachers, search)
    results = search_results.row_results(search)
    is_over, has_final = search.is_over(), opt.final_seeds and any(result.best for result in results)
    progress = train_final(opt, search, extra_args, until) if is_over and has_final else {}
    if any(result.trials for result in results):
        show(search_report.write(save, extra_args, opt.trials))
        print(f'report: {save}/report.html')
    if not is_over:
        end('not all trials are done; the same command continues')
    if any(now.state != DONE for now in progress.values()):
        end('not all final runs are done; the same command continues, with --retry also what has failed')


def train_final(opt, search, extra_args, until):
    """Train the final runs of the rows and pairs of this call. Returns their progress.

    The table and its report have all rows with trials, also those of other calls.
    """
    folder, logs = search.save / 'final', search.save / 'final/logs'
    whole = search_report.open_search(search.save, extra_args)
    table, runs = make_final(whole, opt.final_seeds, opt.final_rows, extra_args)
    check(table, folder, runs)
    part = final_runs(runs, search.table)
    print(f'final runs: {", ".join(opt.final_rows)} values of each row with {opt.final_seeds} seeds, '
          f'{search.save}/final.toml', flush=True)
    runner = make_runner(opt, f'{search.table.name}-final', folder, until)
    progress = run_table(table, runs, folder, lambda runs: {
        **{run: progress_of(run, logs) for run in runs}, **runner.run(part)}, extra_args, opt.retry, is_final=True)
    return {run: progress[run] for run in part}


def make_runner(opt, name, save, until):
    """Return what trains runs here or by Slurm, with the logs in the folder `save`."""
    if opt.cluster == 'slurm':
        return slurm.Slurm(opt, name, save, until)
    return Local(name, save / 'logs', Devices(opt.gpu_id, opt.jobs, opt.gpus, 1), until=until)


def begin(search, runner, retry):
    """Open the studies and train the teachers, unless another process does. Returns the teachers' runs."""
    teachers = search.teacher_runs()
    make_folders(search.save)
    lock = FolderLock(search.save, shared=True)
    lock.wait()
    try:
        check(search.table, search.save, teachers)
        search.open()
        note_owner(search.table, search.save, search.planner.extra_args)
        if retry:
            search.retry()
        progress = {run: progress_of(run, search.logs) for run in teachers}
        if any(now.state != DONE for now in progress.values()):
            progress = runner.run(teachers)
    finally:
        lock.release()
    if any(now.state != DONE for now in progress.values()):
        print(failures(progress, search.logs), end='')
        end('not all teachers are done; the same command continues')
    return teachers


def end(text):
    """Print why not all is done, and end with exit code 1."""
    print(text, file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
    run_main(main)
