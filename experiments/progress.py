"""How far each step of a table is, read from files alone: from another terminal, and after any interruption."""
import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from analysis.runs import read_run
from helper.errors import UserError, printable
from helper.files import read_json, write_json
from helper.launch import STOP_SIGNALS
from helper.state import LAST

from .plan import Step, expected

DONE, RUNNING, FAILED, LEFT, WAITING = 'done', 'running', 'failed', 'left', 'without its teacher'
HEARTBEAT = 5           # seconds between two signs of life of a worker
SILENT = 60             # seconds after which a worker that gave none has ended
LAST_LINES = 5
MOST_STARTS = 5         # a step that dies or ends without a result so often in a row has failed
MOST_SECONDS = 10**9     # that a table may take, where its runs' files are not odd


@dataclass
class Progress:
    """The state of a step, how much of it is done (0 to 1), and the seconds that this took."""

    state: str
    part: float = 0.0
    seconds: float = 0.0


class Record:
    """logs/NAME.json beside logs/NAME.log: what a worker says of a step. The step's own folder says how far it is."""

    def __init__(self, logs: Path, step: Step):
        self.step = step
        self.path, self.log = logs / f'{step.name}.json', logs / f'{step.name}.log'

    def begin(self, command: str) -> None:
        write_json(self.path, {'state': 'running', 'command': command, 'options': expected(self.step.opt),
                               'host': socket.gethostname(), 'slurm': os.environ.get('SLURM_JOB_ID'),
                               'began': time.time(), 'deaths': self.deaths()})

    def beat(self) -> None:
        """A sign of life."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def end(self, code: int, asked: bool = False) -> None:
        """Record the end of a step. code: of subprocess, negative for a signal. asked: this process told it to end.

        A run that died cannot report it: this writes the line into its log.
        """
        why, deaths = '' if asked else self._death(code), 0
        if why:
            deaths = self.deaths() + 1
            with contextlib.suppress(OSError), open(self.log, 'a') as log:
                log.write(f'{why}, start {deaths} of {MOST_STARTS}\n')
        write_json(self.path, {**self.read(), 'state': 'ended', 'code': code, 'ended': time.time(), 'deaths': deaths})

    def _death(self, code):
        """How it died; '' if it finished, failed with an error, or was ended by a stop signal."""
        number = _signal_of(code)
        if number in STOP_SIGNALS or (code > 0 and number is None) or (code == 0 and result(self.step)):
            return ''
        if code == 0:
            return 'ended without a result'
        name = number.name if number else f'signal {-code}'
        return f'ended by {name}' + (' (out of memory?)' if number == signal.SIGKILL else '')

    def deaths(self) -> int:
        """How often in a row it died or ended without a result, with its current options."""
        said = self.read()
        deaths = said.get('deaths') if said.get('options') == expected(self.step.opt) else 0
        return deaths if isinstance(deaths, int) else 0

    def forget(self) -> None:
        """Try it again."""
        self.path.unlink(missing_ok=True)

    def read(self) -> dict:
        """What was last said; nothing where it cannot be read."""
        with contextlib.suppress(UserError):
            found = read_json(self.path, str(self.path))
            return found if isinstance(found, dict) else {}
        return {}

    def alive(self) -> bool:
        """Whether a worker is at it now, on whichever machine."""
        try:
            return self.read().get('state') == 'running' and time.time() - self.path.stat().st_mtime < SILENT
        except OSError:
            return False

    def failed(self) -> bool:
        """Whether it ended with an error, or died MOST_STARTS times. A stop signal is no failure.

        A failure with options that the table has changed since does not count.
        """
        said = self.read()
        code = said.get('code')
        if not isinstance(code, int) or said.get('options') != expected(self.step.opt):
            return False
        return (code > 0 and _signal_of(code) is None) or self.deaths() >= MOST_STARTS

    def last_lines(self) -> list[str]:
        """The end of its log."""
        try:
            lines = self.log.read_bytes().decode(errors='replace').split('\n')
        except OSError:
            return []
        return [printable(line.rstrip('\r').rpartition('\r')[2])[:300] for line in lines if line.strip()][-LAST_LINES:]


def _signal_of(code: int) -> signal.Signals | None:
    """The signal that ended a process. code: the signal's negative number, or 128 + its number, as of a shell."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-code if code < 0 else code - 128)
    return None


def result(step: Step) -> dict | None:
    """The value of analysis.runs.read_run for its run; None if it has not finished, or a file is lost or damaged.

    The figures do not need the best epoch's weights. Without them a run still counts as finished, unless other runs
    learn from it, or last.pth can restore them.
    """
    with contextlib.suppress(UserError):
        run = read_run(str(step.folder))
        whole = step.checkpoint.is_file() or not (step.teaches or last_is_best(step, run))
        return run if whole and len(run['curve']) >= step.opt.epochs else None
    return None


def last_is_best(step: Step, run: dict) -> bool:
    """Whether last.pth has the weights of a finished run's best epoch, which is then the last one."""
    return (step.folder / LAST).is_file() and max(run['curve']) not in run['curve'][:-1]


def progress(step: Step, logs: Path, running: set | None = None) -> Progress:
    """running: the steps that a worker of this process is at; None: ask the records."""
    if run := result(step):
        return Progress(DONE, 1.0, run['seconds'])
    record, history = Record(logs, step), _epochs(step.folder / 'history.json')
    seconds = sum(epoch['seconds'] for epoch in history)
    part = min(len(history) / step.opt.epochs, 1.0)
    if step in running if running is not None else record.alive():
        return Progress(RUNNING, part, seconds)
    if record.failed():
        return Progress(FAILED, part, seconds)
    state = WAITING if step.after and progress(step.after, logs, running).state in (FAILED, WAITING) else LEFT
    return Progress(state, part, seconds)


def _epochs(path):
    """The epochs of a history.json; none where it is not there, or damaged."""
    with contextlib.suppress(UserError):
        found = read_json(path, str(path))
        return [epoch for epoch in found if isinstance(epoch, dict) and isinstance(epoch.get('seconds'), float)] \
            if isinstance(found, list) else []
    return []


def seconds_left(steps: dict[Step, Progress], at_once: int) -> float | None:
    """How long the steps that are left will take, by what those of their kind took: the same method and nets, else any
    student or any teacher. None where no such step has an epoch yet.

    at_once: how many run at the same time.
    """
    known: dict[object, list[float]] = {}
    for step, now in steps.items():
        if now.part and now.seconds:
            for kind in _kinds(step):
                known.setdefault(kind, []).append(now.seconds / now.part)
    left = []
    for step, now in steps.items():
        if now.state in (RUNNING, LEFT):
            alike = next((known[kind] for kind in _kinds(step) if kind in known), None)
            if alike is None:
                return None
            left.append(mean(alike) * (1 - now.part))
    return max([sum(left) / max(1, at_once), *left], default=0.0)


def _kinds(step):
    opt = step.opt
    return (getattr(opt, 'distill', ''), getattr(opt, 'model_t', ''), step.net), bool(step.cells)


def summary(name: str, steps: dict[Step, Progress], at_once: int) -> str:
    """One line: 'digits: 12 done, 2 running, 0 failed, 10 left, ready about Thu 14:32'."""
    count = {state: sum(now.state == state for now in steps.values())
             for state in (DONE, RUNNING, FAILED, LEFT, WAITING)}
    text = ', '.join(f'{n} {state}' for state, n in count.items() if n or state != WAITING)
    left = seconds_left(steps, at_once)
    if left and 0 < left < MOST_SECONDS and (count[RUNNING] or count[LEFT]):
        text += time.strftime(', ready about %a %H:%M', time.localtime(time.time() + left))
    return f'{name}: {text}'


def failures(steps: dict[Step, Progress], logs: Path) -> str:
    """The steps that failed, each with the last lines of its log, and those whose best weights are lost."""
    parts = []
    for step, now in steps.items():
        if now.state == DONE and not step.checkpoint.is_file():
            parts.append(f'lost: the weights of {step.name} ({step.checkpoint}); its figures stay. To have them again, '
                         f'move the folder away')
        if now.state == FAILED:
            record = Record(logs, step)
            parts.append('\n'.join([f'failed: {step.name} ({record.log})', *(f'    {line}' for line in
                                                                              record.last_lines())]))
    return ''.join(f'{part}\n' for part in parts)
