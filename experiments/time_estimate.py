"""Estimate the hours of a table by --estimate, for one run of each row and pair and for each teacher."""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from helper.checkpoint import save_checkpoint
from helper.cli import readable_hours
from helper.errors import UserError, printable
from models.find import build

from .pair_check import SIZES, pixels
from .planned_run import PlannedRun
from .progress import DONE, Progress


def estimate(progress: dict[PlannedRun, Progress], device_flags: list[str], threads: str | None, at_once: int) -> None:
    """Time some steps of each kind of unfinished run, and print the hours of each kind and of the table.

    device_flags, threads: see Processes. at_once: the number of runs at the same time. Nothing is written into the
    table's folder: an untrained net replaces a teacher that is not trained yet. Raises UserError if a run fails.
    """
    left = {run: now for run, now in progress.items() if now.state != DONE}
    total, longest, classes = 0.0, 0.0, {}
    with tempfile.TemporaryDirectory() as folder:
        for label in dict.fromkeys(run.label for run in left):
            runs = [run for run in left if run.label == label]
            measured = _measure(runs[0], device_flags, threads, Path(folder), classes)
            classes[runs[0].opt.dataset] = measured['classes']
            hours = sum(measured['hours'] * (1 - left[run].part) for run in runs)
            total, longest = total + hours, max(longest, measured['hours'])
            print(f'{runs[0].short_label}: {readable_hours(measured["hours"])} a run, {len(runs)} left: '
                  f'{readable_hours(hours)}', flush=True)
    print(f'estimate: {readable_hours(total)} for one run after the other; {at_once} at the same time: about '
          f'{readable_hours(max(total / at_once, longest))}')


def _measure(run, device_flags, threads, folder, classes) -> dict:
    """Return the JSON of a train script's --estimate. classes: data set -> number of classes, as far as known."""
    argv = [*run.command(device_flags, sys.executable), '--estimate', '--save_dir', str(folder)]
    teacher = getattr(run.opt, 'path_t', None)
    if teacher and not os.path.exists(teacher):
        num_classes = classes.get(run.opt.dataset) or SIZES[run.opt.dataset][0]
        net = build(run.opt.model_t, num_classes, pixels(run.opt), run.label)
        save_checkpoint(folder / 'teacher.pth', {'model': net.state_dict(), 'arch': run.opt.model_t,
                                                 'num_classes': num_classes})
        argv += ['--path-t', str(folder / 'teacher.pth')]
    environment = {**os.environ, **({'OMP_NUM_THREADS': threads} if threads else {})}
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        error = (done.stderr.strip() or f'exit code {done.returncode}').splitlines()[-1].removeprefix('error: ')
        raise UserError(f'{run.label}: --estimate: {printable(error)}')
    return json.loads(done.stdout.splitlines()[-1])
