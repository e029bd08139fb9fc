"""The progress of each run, read from files alone: another terminal can ask for it, also after an interruption."""
import contextlib
import os
import signal
import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from analysis.runs import read_or_empty, read_run
from helper.errors import UserError, printable
from helper.files import write_json
from helper.launch import STOP_SIGNALS
from helper.state import LAST

from .planned_run import PlannedRun, expected_options

DONE, RUNNING, FAILED, LEFT, WAITING = 'done', 'running', 'failed', 'left', 'without its teacher'
PRUNED = 'ended early'      # a hopeless trial of a search
HEARTBEAT = 5           # seconds between two signs of life of a process
SILENT = 60             # seconds without a sign of life after which a run counts as ended
LAST_LINES = 5
MAX_STARTS = 5          # a run that dies or ends without a result this often in a row has failed
MAX_SECONDS = 10**9     # a longer estimate comes from damaged files


@dataclass
class Progress:
    """The state of a run, its finished share (0 to 1), and the seconds that this share took."""

    state: str
    part: float = 0.0
    seconds: float = 0.0


class Record:
    """logs/NAME.json beside logs/NAME.log: how a run was started and how it ended."""

    def __init__(self, logs: Path, run: PlannedRun):
        self.run, self.path, self.log = run, logs / f'{run.name}.json', logs / f'{run.name}.log'

    def begin(self, command: str) -> None:
        write_json(self.path, {'state': 'running', 'command': command, 'options': expected_options(self.run.opt),
                               'host': socket.gethostname(), 'slurm': os.environ.get('SLURM_JOB_ID'),
                               'began': time.time(), 'deaths': self.deaths()})

    def beat(self) -> None:
        """Give a sign of life."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def end(self, code: int, was_stopped: bool = False) -> None:
        """Record the end of the run; if it died, write how into its log. was_stopped: this process told it to end."""
        cause, deaths = '' if was_stopped else self._cause_of_death(code), 0
        if cause:
            deaths = self.deaths() + 1
            with contextlib.suppress(OSError), open(self.log, 'a') as log:
                log.write(f'{cause}, start {deaths} of {MAX_STARTS}\n')
        write_json(self.path, {**self.read(), 'state': 'ended', 'code': code, 'ended': time.time(), 'deaths': deaths})

    def _cause_of_death(self, code):
        """Return how the run died; '' if it finished, failed with an error, or was ended by a stop signal."""
        number = _signal_of(code)
        if number in STOP_SIGNALS or (code > 0 and number is None) or (code == 0 and load_result(self.run)):
            return ''
        if code == 0:
            return 'ended without a result'
        name = number.name if number else f'signal {-code}'
        return f'ended by {name}' + (' (out of memory?)' if number == signal.SIGKILL else '')

    def read(self) -> dict:
        """Return the record; empty if it is missing or damaged."""
        return read_or_empty(self.path, dict)

    def _count(self, key):
        """Return a whole number of the record; 0 if the run's options have changed since."""
        content = self.read()
        number = content.get(key) if content.get('options') == expected_options(self.run.opt) else 0
        return number if isinstance(number, int) else 0

    def deaths(self) -> int:
        """Return how often in a row the run died or ended without a result."""
        return self._count('deaths')

    def has_failed(self) -> bool:
        """Return whether the run ended with an error, which a stop signal is not, or died MAX_STARTS times."""
        code = self._count('code')
        return (code > 0 and _signal_of(code) is None) or self.deaths() >= MAX_STARTS

    def is_alive(self) -> bool:
        """Return whether a process on any machine is training the run."""
        try:
            return self.read().get('state') == 'running' and time.time() - self.path.stat().st_mtime < SILENT
        except OSError:
            return False

    def last_lines(self) -> list[str]:
        """Return the last lines of the log."""
        try:
            lines = self.log.read_bytes().decode(errors='replace').split('\n')
        except OSError:
            return []
        return [printable(line.rstrip('\r').rpartition('\r')[2])[:300] for line in lines if line.strip()][-LAST_LINES:]


def _signal_of(code: int) -> signal.Signals | None:
    """Return the signal that ended a process. code: its negative number, or 128 + its number, as a shell gives it."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-code if code < 0 else code - 128)
    return None


def load_result(run: PlannedRun) -> dict | None:
    """Return analysis.runs.read_run of a finished run; None if it has not finished, or if a file is lost or damaged.

    A run without its best weights still counts as finished, unless other runs need them or last.pth has them.
    """
    with contextlib.suppress(UserError):
        result = read_run(str(run.folder), needs_test=not run.opt.no_test)
        has_weights = run.checkpoint.is_file() or not (run.has_students or last_is_best(run, result))
        is_over = len(result['curve']) >= run.opt.epochs or result['stopped_early']
        return result if has_weights and is_over else None
    return None


def last_is_best(run: PlannedRun, result: dict) -> bool:
    """Return whether last.pth has the weights of a finished run's best epoch, because that is the last epoch."""
    return (run.folder / LAST).is_file() and max(result['curve']) not in result['curve'][:-1]


def progress_of(run: PlannedRun, logs: Path, running: set | None = None) -> Progress:
    """Return a run's progress. running: the runs that this process is training; None: read it from the records."""
    if result := load_result(run):
        return Progress(DONE, 1.0, result['seconds'])
    record = Record(logs, run)
    epochs = [epoch['seconds'] for epoch in read_or_empty(run.folder / 'history.json', list)
              if isinstance(epoch, dict) and isinstance(epoch.get('seconds'), float)]
    if run in running if running is not None else record.is_alive():
        state = RUNNING
    elif record.has_failed():
        state = FAILED
    elif run.teacher_run and progress_of(run.teacher_run, logs, running).state in (FAILED, WAITING):
        state = WAITING
    else:
        state = LEFT
    return Progress(state, min(len(epochs) / run.opt.epochs, 1.0), sum(epochs))


def seconds_left(runs: dict[PlannedRun, Progress], at_once: int) -> float | None:
    """Estimate the remaining seconds of a table; None if no run of a kind that is left has an epoch yet.

    Runs take as long as others of the same method and nets, else as any student or teacher. at_once: runs at a time.
    """
    known: dict[object, list[float]] = {}
    for run, now in runs.items():
        if now.part and now.seconds:
            for kind in _kinds(run):
                known.setdefault(kind, []).append(now.seconds / now.part)
    left = []
    for run, now in runs.items():
        if now.state in (RUNNING, LEFT):
            seconds = next((known[kind] for kind in _kinds(run) if kind in known), None)
            if seconds is None:
                return None
            left.append(mean(seconds) * (1 - now.part))
    return max([sum(left) / max(1, at_once), *left], default=0.0)


def _kinds(run):
    opt = run.opt
    return (getattr(opt, 'distill', ''), getattr(opt, 'model_t', ''), run.net), bool(run.cells)


def summary(name: str, runs: dict[PlannedRun, Progress], at_once: int) -> str:
    """Return a line such as 'digits: 12 done, 2 running, 0 failed, 10 left, ready about Thu 14:32'."""
    count = Counter(now.state for now in runs.values())
    text = ', '.join(f'{count[state]} {state}' for state in (DONE, RUNNING, FAILED, LEFT, WAITING)
                     if count[state] or state != WAITING)
    seconds = seconds_left(runs, at_once)
    if seconds and 0 < seconds < MAX_SECONDS and (count[RUNNING] or count[LEFT]):
        text += time.strftime(', ready about %a %H:%M', time.localtime(time.time() + seconds))
    return f'{name}: {text}'


def failures(runs: dict[PlannedRun, Progress], logs: Path) -> str:
    """Return lines on the runs that failed, with the ends of their logs, and on those whose best weights are lost."""
    lines = []
    for run, now in runs.items():
        if now.state == DONE and not run.checkpoint.is_file():
            lines.append(f'lost: the weights of {run.name} ({run.checkpoint}); its figures stay. To train them again, '
                         f'move the folder away')
        if now.state == FAILED:
            record = Record(logs, run)
            lines += [f'failed: {run.name} ({record.log})', *(f'    {line}' for line in record.last_lines())]
    return ''.join(f'{line}\n' for line in lines)
