"""A worker: the processes of some steps at the same time, with their logs, until all have ended or a signal came."""
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from helper.launch import STOP_SIGNALS, end_with_parent

from .plan import shell
from .progress import HEARTBEAT, Record

GRACE = 300         # seconds that a run has to finish its step and save


class Work:
    """Steps that run at the same time: one, or several trials that share a GPU."""

    def __init__(self, logs: Path, steps: list, placement: list[str], threads: str | None):
        """placement: flags of every step that say where it computes. threads: OMP_NUM_THREADS of each step."""
        self.logs, self.steps, self.placement, self.threads = logs, steps, placement, threads
        self.processes: dict = {}           # step -> process, of those that have not ended
        self.codes: dict = {}               # step -> exit code, of the others
        self.beaten = 0.0
        self.asked = False                  # whether this process told them to end

    def start(self) -> None:
        """Start them; each writes to the end of its log."""
        environment = {**os.environ, **({'OMP_NUM_THREADS': self.threads} if self.threads else {})}
        for step in self.steps:
            record = Record(self.logs, step)
            record.begin(shell(step.command(self.placement), self.threads))
            # A port of its own: another run on this machine may have several processes too.
            port = ['--dist-url', f'tcp://127.0.0.1:{_free_port()}'] \
                if '--multiprocessing-distributed' in self.placement else []
            with open(record.log, 'ab') as log:
                # A session of its own: Ctrl-C in the terminal comes to this process alone, which passes it on.
                self.processes[step] = subprocess.Popen(
                    step.command([*self.placement, *port], sys.executable), env=environment, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                    preexec_fn=partial(_in_new_process, os.getpid()))

    def ended(self) -> bool:
        """Whether all have ended; to be asked again and again, also by the handler of a signal that interrupts it."""
        now = time.monotonic()
        beat, self.beaten = now - self.beaten > HEARTBEAT, now if now - self.beaten > HEARTBEAT else self.beaten
        for step, process in list(self.processes.items()):
            code = _exit_code(process.pid)
            if code is not None:
                self.codes[step] = process.returncode = code
                Record(self.logs, step).end(code, self.asked)
                self.processes.pop(step, None)
            elif beat:
                Record(self.logs, step).beat()
        return not self.processes

    def stop(self, seconds: float = GRACE) -> None:
        """Ask all to save and end, and wait for them so long; then end what is left."""
        self.signal(signal.SIGTERM)
        until = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < until:
            time.sleep(0.05)
        self.kill()

    def signal(self, number: int) -> None:
        self.asked = True
        for process in list(self.processes.values()):
            with contextlib.suppress(OSError):
                os.kill(process.pid, number)

    def kill(self) -> None:
        """End what has not ended, with all that it has started."""
        self.asked = True
        for process in list(self.processes.values()):
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        while not self.ended():
            time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def _exit_code(pid):
    """Of a child that has ended; None while it runs. Not Popen.poll(): a handler of a signal may have interrupted that,
    and would wait for its lock for ever."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:       # what the handler has interrupted had just asked; as Popen, which says 0 then
        return 0
    return os.waitstatus_to_exitcode(status) if found else None


def _in_new_process(parent):
    """Signals as usual, also where `parent` has them ignored, and one when that process is killed."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)       # submitit's; the worker then tells the runs
    end_with_parent(parent)
