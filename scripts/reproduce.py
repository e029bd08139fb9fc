"""Run a table of teacher-student pairs and methods, and report it beside the published figures.

python scripts/reproduce.py TABLE [--dry-run [--estimate]] [--status] [--rows ROW,...] [--pairs PAIR,...]
    [--seeds SEED,...] [--jobs N] [--cluster slurm] [flags of every run]

TABLE is the name of a file in scripts/tables/, or the path of another. After any interruption the same command
continues: it skips finished runs and resumes the others from their last.pth. Flags that this script does not know go to
every run: --data_dir /data --fast.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments import slurm
from experiments.devices import Devices
from experiments.folder_check import check, flags_of
from experiments.local import Local
from experiments.plan import plan_runs
from experiments.planned_run import check_batches, parse_known_flags, select_part, shell
from experiments.progress import DONE, RUNNING, failures, progress_of, summary
from experiments.run_table import run_table
from experiments.table_file import find_table, read_table
from experiments.time_estimate import estimate
from helper.cli import Parser, number, path
from helper.errors import run_main


def options():
    """Return the options of this script, and the flags of every run."""
    parser = Parser(description='Run a table of pairs and methods, and report it.')
    add = parser.add_argument
    add('table', metavar='TABLE', help='the name of a file in scripts/tables, or the path of another')
    add('--save_dir', type=path, help='the folder of its runs, logs and report; default: save/TABLE')
    add('--dry-run', action='store_true', help='print the command of every run, and stop')
    add('--estimate', action='store_true',
        help='with --dry-run: time some steps of an unfinished run of each row and pair, and print the hours')
    add('--rows', type=path, metavar='ROW,...', help='run only these rows, with their teachers; default: all')
    add('--pairs', type=path, metavar='PAIR,...', help="run only these pairs, as 'vgg13 -> vgg8'")
    add('--seeds', type=path, metavar='SEED,...', help='run only the trials with these seeds')
    add('--status', action='store_true', help='print the progress of the table, and stop')
    add('--retry', action='store_true', help='also run again what has failed')
    add('--cluster', choices=('local', 'slurm'), default='local', help='run here, or as array jobs of Slurm')
    add('--jobs', type=number(int, low=1, high=10000),
        help='runs at the same time; default: one for each GPU or core, or as many as Slurm starts')
    add('--gpu_id', type=path, help='GPUs to use, with commas, or cpu; default: all')
    add('--gpus', type=number(int, low=0, high=64),
        help='GPUs of each run, which divide its batch; 0: none; default: one if there is any')
    add('--trial_parallel', type=number(int, low=1, high=64), default=1,
        help='trials of one cell at the same time on one GPU, for nets that leave it idle')
    slurm.add_arguments(parser.group('--cluster slurm'))
    opt, extra_args = parse_known_flags(parser)
    slurm.check_arguments(opt, parser)
    if opt.estimate and (not opt.dry_run or opt.cluster == 'slurm'):
        parser.error('--estimate: times runs on this machine; ' + ('leave out --cluster slurm' if opt.dry_run else
                                                                   'give --dry-run too'))
    return opt, extra_args


def main():
    opt, extra_args = options()
    table = read_table(find_table(opt.table))
    save = Path(opt.save_dir or f'save/{table.name}')
    logs = save / 'logs'
    if opt.status:
        extra_args = extra_args or flags_of(save)
    table, runs = select_part(table, plan_runs(table, str(save), extra_args), opt.rows, opt.pairs, opt.seeds)
    check(table, save, runs, read_only=opt.status)
    if opt.status:
        progress = {run: progress_of(run, logs) for run in runs}
        print(summary(table.name, progress, sum(now.state == RUNNING for now in progress.values())))
        print(failures(progress, logs), end='')
        return

    devices = slurm.Slurm(opt, table.name, save) if opt.cluster == 'slurm' else \
        Devices(opt.gpu_id, opt.jobs, opt.gpus, opt.trial_parallel)
    check_batches(runs, devices.gpus or 1)
    if opt.dry_run:
        flags, threads = (devices.flags, None) if opt.cluster == 'slurm' else (devices.flags[0], devices.threads)
        print_commands(table, runs, flags, threads)
        if opt.estimate:
            print()
            estimate({run: progress_of(run, logs) for run in runs}, flags, threads,
                     len(devices.flags) * opt.trial_parallel)
        return
    train = devices.run if opt.cluster == 'slurm' else Local(table.name, logs, devices, opt.trial_parallel).run
    progress = run_table(table, runs, save, train, extra_args, opt.retry)
    if any(now.state != DONE for now in progress.values()):
        retry = '' if opt.retry else ', with --retry also what has failed'
        print(f'not all is done; the same command continues{retry}', file=sys.stderr)
        sys.exit(1)


def print_commands(table, runs, device_flags, threads):
    """Print the teachers' commands, then the commands of each cell; a run of two cells is printed twice."""
    for run in runs:
        if not run.cells:
            print(f'# {run.short_label}\n{shell(run.command(device_flags), threads)}')
    printed = set()
    for pair in table.pairs:
        for row in table.rows:
            cell = row.label, str(pair)
            if cell not in table.left_out:
                print(f'\n# {pair}, {row.label}')
            for run in runs:
                if cell in run.cells:
                    print(shell(run.command(device_flags), threads)
                          + ('    # the same run as above' if run in printed else ''))
                    printed.add(run)


if __name__ == '__main__':
    run_main(main)
