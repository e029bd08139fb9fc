"""How long a table will take: --estimate of one run of each row and pair, and of each teacher."""
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

from .plan import SIZES, Step, pixels
from .progress import DONE, Progress


def estimate(steps: dict[Step, Progress], placement: list[str], threads: str | None, at_once: int) -> None:
    """Time some steps of each kind of unfinished run, and print the hours of each and of the whole table.

    placement, threads: see processes.Work. at_once: how many runs compute at the same time. Nothing is written into the
    table's folder: a teacher that is not trained yet is replaced by an untrained net, which takes the same time. Raises
    UserError if a run fails.
    """
    left = {step: now for step, now in steps.items() if now.state != DONE}
    hours, longest, classes = 0.0, 0.0, {}
    with tempfile.TemporaryDirectory() as folder:
        for what in dict.fromkeys(step.what for step in left):
            alike = [step for step in left if step.what == what]
            found = _measure(alike[0], placement, threads, Path(folder), classes)
            classes[alike[0].opt.dataset] = found['classes']
            of_all = sum(found['hours'] * (1 - left[step].part) for step in alike)
            hours, longest = hours + of_all, max(longest, found['hours'])
            print(f'{what.partition(": ")[2]}: {readable_hours(found["hours"])} a run, {len(alike)} left: '
                  f'{readable_hours(of_all)}', flush=True)
    print(f'estimate: {readable_hours(hours)} for one run after the other; {at_once} at the same time: about '
          f'{readable_hours(max(hours / at_once, longest))}')


def _measure(step, placement, threads, folder, classes) -> dict:
    """The JSON that a train script prints with --estimate. classes: data set -> number of classes, as far as known."""
    words = [*step.command(placement, sys.executable), '--estimate', '--save_dir', str(folder)]
    teacher = getattr(step.opt, 'path_t', None)
    if teacher and not os.path.exists(teacher):
        number = classes.get(step.opt.dataset) or SIZES[step.opt.dataset][0]
        net = build(step.opt.model_t, number, pixels(step.opt), step.what)
        save_checkpoint(folder / 'teacher.pth', {'model': net.state_dict(), 'arch': step.opt.model_t,
                                                 'num_classes': number})
        words += ['--path-t', str(folder / 'teacher.pth')]
    environment = {**os.environ, **({'OMP_NUM_THREADS': threads} if threads else {})}
    done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or f'exit code {done.returncode}').splitlines()[-1].removeprefix('error: ')
        raise UserError(f'{step.what}: --estimate: {printable(said)}')
    return json.loads(done.stdout.splitlines()[-1])
