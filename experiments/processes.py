"""The processes of runs that start together, with their logs and records."""
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from helper.launch import STOP_SIGNALS, end_with_parent

from .planned_run import PlannedRun, shell
from .progress import HEARTBEAT, Record

GRACE = 300         # seconds that a run has to finish its step and save


class Processes:
    """The processes of some runs: of one, or of trials that share a GPU."""

    def __init__(self, logs: Path, runs: list[PlannedRun], device_flags: list[str], threads: str | None):
        """device_flags: added to each command. threads: OMP_NUM_THREADS of each process."""
        self.logs, self.runs, self.device_flags, self.threads = logs, runs, device_flags, threads
        self.running: dict[PlannedRun, subprocess.Popen] = {}
        self.codes: dict[PlannedRun, int] = {}      # exit codes of the processes that have ended
        self.last_beat = 0.0
        self.was_stopped = False                    # this process told them to end

    def start(self) -> None:
        """Start all runs; each appends to its log."""
        environment = {**os.environ, **({'OMP_NUM_THREADS': self.threads} if self.threads else {})}
        for run in self.runs:
            record = Record(self.logs, run)
            record.begin(shell(run.command(self.device_flags), self.threads))
            # A separate port, since other runs on this machine may use several processes too.
            port = ['--dist-url', f'tcp://127.0.0.1:{_free_port()}'] \
                if '--multiprocessing-distributed' in self.device_flags else []
            with open(record.log, 'ab') as log:
                # A separate session: Ctrl-C in the terminal reaches this process only, which passes it on.
                self.running[run] = subprocess.Popen(
                    run.command([*self.device_flags, *port], sys.executable), env=environment,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                    preexec_fn=partial(_in_new_process, os.getpid()))

    def have_ended(self) -> bool:
        """Return whether all have ended, and update their records. A signal handler that interrupts it may call it."""
        now = time.monotonic()
        is_beat = now - self.last_beat > HEARTBEAT
        if is_beat:
            self.last_beat = now
        for run, process in list(self.running.items()):
            code = _exit_code(process.pid)
            if code is not None:
                self.codes[run] = process.returncode = code
                Record(self.logs, run).end(code, self.was_stopped)
                self.running.pop(run, None)
            elif is_beat:
                Record(self.logs, run).beat()
        return not self.running

    def stop(self, seconds: float = GRACE) -> None:
        """Tell all to save and end, and kill those that have not ended in time."""
        self.terminate()
        until = time.monotonic() + seconds
        while not self.have_ended() and time.monotonic() < until:
            time.sleep(0.05)
        self.kill()

    def terminate(self) -> None:
        """Tell all to save and end."""
        self._send(os.kill, signal.SIGTERM)

    def kill(self) -> None:
        """Kill those that have not ended, with all processes that they have started."""
        self._send(os.killpg, signal.SIGKILL)
        while not self.have_ended():
            time.sleep(0.02)

    def _send(self, kill, number):
        self.was_stopped = True
        for process in list(self.running.values()):
            with contextlib.suppress(OSError):
                kill(process.pid, number)


@contextlib.contextmanager
def stop_signals_handled(handler: Callable):
    """Call handler(signal number, frame) for each stop signal inside the context."""
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as probe:
        return probe.getsockname()[1]


def _exit_code(pid):
    """Return the exit code of a child process; None while it runs."""
    # Popen.poll() takes a lock: a signal handler that interrupts it would wait for that lock for ever.
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:       # the handler has interrupted a call that had just succeeded; Popen says 0 too
        return 0
    return os.waitstatus_to_exitcode(status) if ended else None


def _in_new_process(parent):
    """Restore the default signal handlers, and end with the parent process even if that is killed."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)       # submitit's signal; the job passes it on as SIGTERM
    end_with_parent(parent)
