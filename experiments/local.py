"""Train the runs of a table or the trials of a search on this machine, as many at once as --jobs says."""
import math
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from .devices import Devices, group_trials
from .planned_run import PlannedRun
from .processes import Processes, stop_signals_handled
from .progress import (
    DONE,
    FAILED,
    LEFT,
    MAX_STARTS,
    PRUNED,
    RUNNING,
    WAITING,
    Progress,
    Record,
    progress_of,
    summary,
)
from .search import Search

REFRESH = 2     # seconds after which the progress is read again, also if no run has ended


class Local:
    """Trains the runs of a table, or those that a search gives out. A signal makes all runs save and end; the same
    command continues them."""

    def __init__(self, name: str, logs: Path, devices: Devices, trial_parallel: int = 1, until: float = math.inf):
        """until: the time of time.monotonic() at which all runs save and end."""
        self.name, self.logs, self.devices, self.gpus = name, logs, devices, devices.gpus
        self.trial_parallel, self.until = trial_parallel, until
        self.search: Search | None = None
        self.progress: dict[PlannedRun, Progress] = {}
        self.jobs: dict[int, Processes] = {}        # index in devices.flags -> its processes
        self.starts: Counter[PlannedRun] = Counter()
        self.signal, self.last_refresh, self.shown = 0, 0.0, None

    def run(self, runs: list[PlannedRun], search: Search | None = None) -> dict[PlannedRun, Progress]:
        """Train until no run is left that can start. A signal ends this process with exit code 128 + its number.

        search: gives out further runs, one for each free device.
        """
        self.search, self.progress = search, {run: progress_of(run, self.logs, set()) for run in runs}
        with stop_signals_handled(self._on_signal):
            try:
                while not self.signal and time.monotonic() < self.until:
                    if self._refresh():
                        self._start()
                        self._show()
                        if not self.jobs and not (self.search and self.search.is_waiting):
                            break
                    time.sleep(0.2)
                if self.signal:
                    print(f'\n{signal.Signals(self.signal).name}: {len(self._running())} running; each saves and ends',
                          flush=True)
                    self._stop()
                    print('stopped; the same command continues', flush=True)
                    sys.exit(128 + self.signal)
            finally:
                self._stop()
        if sys.stdout.isatty():
            print()
        for run, now in self.progress.items():
            if now.state == RUNNING:        # until --minutes were over
                self.progress[run] = progress_of(run, self.logs, set())
        return self.progress

    def _refresh(self):
        """Read the progress again if it is time or a run has ended. Returns whether it was read."""
        before = self._running()
        self.jobs = {index: job for index, job in self.jobs.items() if not job.have_ended()}
        running = self._running()
        if before == running and time.monotonic() - self.last_refresh < REFRESH:
            return False
        self.last_refresh = time.monotonic()
        for run in before:
            self.progress[run] = progress_of(run, self.logs, running)
            record = Record(self.logs, run)
            if run not in running and record.deaths():
                self._print(f'{run.name}: {record.last_lines()[-1]} ({record.log})')
        for run, now in self.progress.items():
            if now.state == LEFT and run.teacher_run and self.progress[run.teacher_run].state in (FAILED, WAITING):
                now.state = WAITING
        if self.search:
            hopeless = self.search.update(self.progress, running)
            for job in self.jobs.values():
                if {*hopeless} & {*job.running}:
                    job.terminate()
        return True

    def _running(self):
        return {run for job in self.jobs.values() for run in job.running}

    def _start(self):
        """Start runs on free devices. A run that a signal ended starts again, up to MAX_STARTS times."""
        ready = [run for run, now in self.progress.items() if now.state == LEFT and self.starts[run] < MAX_STARTS
                 and (run.teacher_run is None or self.progress[run.teacher_run].state == DONE)]
        free = [index for index in range(len(self.devices.flags)) if index not in self.jobs]
        while self.search and len(ready) < len(free) and (run := self.search.next_run()):
            self.progress[run] = progress_of(run, self.logs, set())
            self.search.update(self.progress, self._running())      # it may have ended already
            if self.progress[run].state == LEFT:
                ready.append(run)
        for index, runs in zip(free, group_trials(ready, self.trial_parallel), strict=False):
            self.jobs[index] = Processes(self.logs, runs, self.devices.flags[index], self.devices.threads)
            self.jobs[index].start()
            self.starts.update(runs)
            for run in runs:
                self.progress[run].state = RUNNING

    def _show(self):
        """Update the status line of a terminal; elsewhere print a line when a run has ended."""
        at_once = len(self.devices.flags) * self.trial_parallel
        text = self.search.summary(at_once) if self.search else summary(self.name, self.progress, at_once)
        ended = Counter(now.state for now in self.progress.values() if now.state in (DONE, FAILED, PRUNED))
        if sys.stdout.isatty():
            self._print(text, end='')
        elif ended != self.shown:
            self.shown = ended
            self._print(text)

    def _print(self, text, end='\n'):
        """Print a text; in a terminal it replaces the status line."""
        print('\r\x1b[K' * sys.stdout.isatty() + text, end=end, flush=True)

    def _on_signal(self, number, _):
        if self.signal:         # the second signal
            for job in self.jobs.values():
                job.kill()
        self.signal = self.signal or number

    def _stop(self):
        """Make each run save and end, also after an error, such as a terminal that is gone."""
        for job in self.jobs.values():
            job.terminate()
        for job in self.jobs.values():
            job.stop()
