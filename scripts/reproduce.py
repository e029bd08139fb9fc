"""Run a table of teacher-student pairs and methods to its end, and report it beside the published one.

python scripts/reproduce.py TABLE [--dry-run [--estimate]] [--status] [--rows ROW,...] [--pairs PAIR,...]
    [--seeds SEED,...] [--jobs N] [--cluster slurm] [flags of every run]

TABLE is a file of scripts/tables/, by its name, or the path of one of your own. Whatever interrupts it, the same
command goes on: runs that are finished are not done again, others continue from their last.pth. Flags that this script
does not know are given to every run: --data_dir /data --fast.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments import report, report_text, slurm  # noqa: E402
from experiments.folder_check import check, check_data, claim  # noqa: E402
from experiments.local import Local, Places  # noqa: E402
from experiments.plan import check_batches, cut, known_flags, shell, steps_of  # noqa: E402
from experiments.progress import DONE, Record, failures, progress, summary  # noqa: E402
from experiments.table_file import find, read  # noqa: E402
from experiments.time_estimate import estimate  # noqa: E402
from helper.cli import Parser, number, path, show  # noqa: E402
from helper.errors import UserError, run_main  # noqa: E402
from helper.files import FolderLock, make_folder  # noqa: E402


def options():
    """(the options of this script, the flags of every run)."""
    parser = Parser(description='Run a table of pairs and methods, and report it.')
    add = parser.add_argument
    add('table', metavar='TABLE', help='the name of a file in scripts/tables, or the path of one')
    add('--save_dir', type=path, help='where its runs, logs and report are written; else save/TABLE')
    add('--dry-run', action='store_true', help='print the command of every run, and stop')
    add('--estimate', action='store_true',
        help='with --dry-run: time some steps of one unfinished run of each row and pair, and print the hours')
    add('--rows', type=path, metavar='ROW,...', help='run only these rows, with their teachers; not given: all')
    add('--pairs', type=path, metavar='PAIR,...', help="the same for pairs, as 'vgg13 -> vgg8'")
    add('--seeds', type=path, metavar='SEED,...', help='the same for seeds; each is a trial')
    add('--status', action='store_true', help='print how far the table is, and stop')
    add('--retry', action='store_true', help='try again what has failed')
    add('--cluster', choices=('local', 'slurm'), default='local', help='run here, or as array jobs of Slurm')
    add('--jobs', type=number(int, low=1, high=10000),
        help='how many at once; else one for each GPU, or for each core, or as many as Slurm starts')
    add('--gpu_id', type=path, help='GPUs to use, with commas, or cpu; else all')
    add('--gpus', type=number(int, low=0, high=64),
        help='GPUs of each run, which shares its batch over them; else one where there is any, and 0 for none')
    add('--trial_parallel', type=number(int, low=1, high=64), default=1,
        help='trials of one cell that run at the same time on one GPU, for nets that leave it idle')
    slurm.add_arguments(parser.group('--cluster slurm'))
    opt, more = known_flags(parser)
    given = [name for name in ('partition', 'cpus', 'time', 'sbatch') if getattr(opt, name) != parser.get_default(name)]
    if given and opt.cluster != 'slurm':
        parser.error(f'--{given[0]}: is of jobs of Slurm; give --cluster slurm too, or leave it out')
    if opt.estimate and (not opt.dry_run or opt.cluster == 'slurm'):
        parser.error('--estimate: times runs on this machine; ' + ('leave out --cluster slurm' if opt.dry_run else
                                                                   'give --dry-run too'))
    return opt, more


def main():
    opt, more = options()
    table = read(find(opt.table))
    save = opt.save_dir or f'save/{table.name}'
    table, steps = cut(table, steps_of(table, save, more), opt.rows, opt.pairs, opt.seeds)
    logs = Path(save) / 'logs'
    check(table, steps, reading=opt.status)
    cluster = slurm.Slurm(opt, table.name, Path(save)) if opt.cluster == 'slurm' else None
    places = None if cluster else Places(opt.gpu_id, opt.jobs, opt.gpus, opt.trial_parallel)
    check_batches(steps, (cluster or places).gpus or 1)
    if opt.dry_run:
        print_commands(table, steps, *((cluster.flags, None) if cluster else (places.flags[0], places.threads)))
        if opt.estimate:
            print()
            estimate({step: progress(step, logs) for step in steps}, places.flags[0], places.threads,
                     len(places.flags) * opt.trial_parallel)
        return
    if opt.status:
        now = {step: progress(step, logs) for step in steps}
        print(summary(table.name, now, sum(p.state == 'running' for p in now.values())))
        print(failures(now, logs), end='')
        return

    for folder in (Path(save), logs):
        make_folder(folder, Path(save))
    lock = FolderLock(Path(save), shared=True)      # with report.py
    if not lock.take():
        raise UserError(f'--save_dir {save}: another reproduce.py is at work there; --status shows how far it is')
    claim(table, Path(save))
    if opt.retry:
        for step in steps:
            if Record(logs, step).failed():
                Record(logs, step).forget()
    now = cluster.run(steps) if cluster else Local(table.name, logs, steps, places, opt.trial_parallel).run()
    print(failures(now, logs), end='')
    show(report_text.plain(report.write(table, steps, Path(save), now)))
    print(f'report: {save}/report.html')
    check_data(steps)
    if any(p.state != DONE for p in now.values()):
        print('not all is done; the same command goes on, with --retry also what has failed', file=sys.stderr)
        sys.exit(1)


def print_commands(table, steps, placement, threads):
    """Those of the teachers first, then each cell's; a run that two cells share is printed in both."""
    for step in steps:
        if not step.cells:
            print(f'# {step.what.partition(": ")[2]}\n{shell(step.command(placement), threads)}')
    shown = set()
    for pair in table.pairs:
        for row in table.rows:
            if (row.label, str(pair)) not in table.left_out:
                print(f'\n# {pair}, {row.label}')
            for step in steps:
                if (row.label, str(pair)) in step.cells:
                    again = '    # the same run as above' if step in shown else ''
                    print(shell(step.command(placement), threads) + again)
                    shown.add(step)


if __name__ == '__main__':
    run_main(main)
