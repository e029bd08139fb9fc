"""A worker: the processes of some steps at the same time, with their logs, until all have ended or a signal came."""
import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from helper.launch import STOP_SIGNALS, end_with_parent

from .state import HEARTBEAT, Record
from .steps import shell

GRACE = 300         # seconds that a run has to finish its step and save


class Work:
    """Steps that run at the same time: one, or several trials that share a GPU."""

    def __init__(self, logs: Path, steps: list, placement: list[str], threads: int | None):
        """placement: flags of every step that say where it computes. threads: of the CPU, for each step."""
        self.logs, self.steps, self.placement, self.threads = logs, steps, placement, threads
        self.processes: dict = {}
        self.beaten = 0.0

    def start(self) -> None:
        """Start them; each writes to the end of its log."""
        environment = {**os.environ, **({'OMP_NUM_THREADS': str(self.threads)} if self.threads else {})}
        for step in self.steps:
            record = Record(self.logs, step)
            record.begin(shell(step.command(self.placement), self.threads))
            with open(record.log, 'ab') as log:
                # A session of its own: Ctrl-C in the terminal comes to this process alone, which passes it on.
                self.processes[step] = subprocess.Popen(
                    step.command(self.placement, sys.executable), env=environment, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True,
                    preexec_fn=partial(_in_new_process, os.getpid()))

    def ended(self) -> bool:
        """Whether all have ended; to be asked again and again."""
        now = time.monotonic()
        beat, self.beaten = now - self.beaten > HEARTBEAT, now if now - self.beaten > HEARTBEAT else self.beaten
        for step, process in list(self.processes.items()):
            if process.poll() is not None:
                Record(self.logs, step).end(process.returncode)
                del self.processes[step]
            elif beat:
                Record(self.logs, step).beat()
        return not self.processes

    def stop(self) -> None:
        """Ask all to save and end, and wait for them."""
        self.signal(signal.SIGTERM)
        until = time.monotonic() + GRACE
        while not self.ended() and time.monotonic() < until:
            time.sleep(0.05)
        self.kill()

    def signal(self, number: int) -> None:
        for process in self.processes.values():
            with contextlib.suppress(OSError):
                process.send_signal(number)

    def kill(self) -> None:
        """End what has not ended, with all that it has started."""
        for process in self.processes.values():
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.ended()


def _in_new_process(parent):
    """Signals as usual, also where `parent` has them ignored, and one when that process is killed."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)       # submitit's; the worker then tells the runs
    end_with_parent(parent)
