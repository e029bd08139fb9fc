"""A Slurm job of a table: it trains some runs, and saves and queues itself again before it is cut off."""
import signal
import time
from pathlib import Path

from .planned_run import PlannedRun
from .processes import Processes
from .progress import Record, load_result

NOTICE = 90         # seconds before its time limit at which Slurm signals a job, or up to a minute earlier
SAVING = 60         # seconds of these for the runs to save
ENDING = 600        # seconds that a job waits for Slurm to end it, after its runs were told to end

# The Python of a job starts with submitit's signal blocked, which would kill it while it loads torch. Job unblocks it.
START = ('import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); '
         'os.execv(sys.executable, [sys.executable, *sys.argv[1:]])')


class Job:
    """Trains some runs at the same time. submitit pickles it, calls it, and calls `checkpoint` on its signal."""

    def __init__(self):
        self.processes = None

    def __call__(self, logs: Path, runs: list[PlannedRun], device_flags: list[str], threads: str | None) -> None:
        """Train the runs, see Processes. Skip those that have failed or lack a finished teacher; restart dead ones."""
        was_terminated = False
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        while not was_terminated and (ready := [
                run for run in runs if not load_result(run) and not Record(logs, run).has_failed()
                and (run.teacher_run is None or load_result(run.teacher_run))]):
            self.processes = Processes(logs, ready, device_flags, threads)
            self.processes.start()
            while not self.processes.have_ended():
                time.sleep(0.2)
            was_terminated = bool({128 + signal.SIGTERM, -signal.SIGTERM} & {*self.processes.codes.values()})
            runs = [run for run in ready if Record(logs, run).deaths()]
        # Slurm sends SIGTERM before it cancels, requeues or pre-empts a job. If the job returned now, it would count as
        # complete and would not be queued again.
        until = time.monotonic() + ENDING
        while was_terminated and time.monotonic() < until:
            time.sleep(0.2)

    def checkpoint(self, *arguments):
        """Save the runs and queue the job again: it is pre-empted, or its time is nearly over."""
        from submitit.helpers import DelayedSubmission
        if self.processes:
            self.processes.stop(SAVING)
        return DelayedSubmission(Job(), *arguments)
