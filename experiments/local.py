"""Run the steps of a table on this machine, as many at once as --jobs says."""
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from helper.device import cores
from helper.errors import UserError
from helper.launch import STOP_SIGNALS

from .plan import Step
from .processes import Work
from .progress import DONE, FAILED, LEFT, MOST_STARTS, RUNNING, WAITING, Progress, Record, progress, summary


class Places:
    """Where steps compute at the same time: each job's flags, and how many threads of the CPU each of its steps has."""

    def __init__(self, gpu_id: str | None, jobs: int | None, gpus_per_run: int | None, trial_parallel: int):
        """gpu_id: 'cpu', or GPUs with commas; None: all that there are. Raises UserError."""
        self.gpus = 0       # of each run
        found = [str(i) for i in range(torch.cuda.device_count())]
        gpus = found or ['cpu'] if gpu_id is None else gpu_id.split(',')
        if gpus_per_run == 0 and gpu_id is None:
            gpus = ['cpu']
        if gpus == ['cpu']:
            if gpus_per_run:
                raise UserError(f'--gpus {gpus_per_run}: ' + ('there is no GPU here' if gpu_id is None else
                                                              '--gpu_id is cpu') + '; leave it out')
            jobs = jobs or max(1, cores() // trial_parallel)
            share = max(1, cores() // (jobs * trial_parallel))
            self.threads = threads_of(share)
            self.flags = [['--gpu_id', 'cpu', '--num_workers', str(share)]] * jobs
            return
        if odd := [gpu for gpu in gpus if gpu not in found]:
            raise UserError(f'--gpu_id {gpu_id}: there is no GPU {odd[0]}; ' +
                            (f'there are {", ".join(found)}' if found else 'give cpu'))
        if len({*gpus}) < len(gpus):
            raise UserError(f'--gpu_id {gpu_id}: names a GPU twice; give each once, and --jobs for several runs on one')
        if gpus_per_run == 0:
            raise UserError(f'--gpus 0: --gpu_id {gpu_id} names GPUs; leave one of the two out')
        gpus_per_run = gpus_per_run or 1
        if gpus_per_run > 1 and trial_parallel > 1:
            raise UserError(f'--trial_parallel {trial_parallel}: trials share one GPU; leave it out, or --gpus')
        groups = [gpus[i:i + gpus_per_run] for i in range(0, len(gpus) - gpus_per_run + 1, gpus_per_run)]
        if not groups:
            raise UserError(f'--gpus {gpus_per_run}: --gpu_id {",".join(gpus)} names {len(gpus)}')
        jobs = jobs or len(groups)
        self.gpus, self.threads = gpus_per_run, None
        workers = max(1, cores() // (jobs * trial_parallel))
        self.flags = [[*gpu_flags(groups[job % len(groups)]), '--num_workers', str(workers)] for job in range(jobs)]


def threads_of(share: int) -> str:
    """OMP_NUM_THREADS of a run that computes on `share` cores: the user's exported value, else their number."""
    return os.environ.get('OMP_NUM_THREADS') or str(share)


def gpu_flags(gpus: list[str]) -> list[str]:
    """The flags of a run on these GPUs."""
    return ['--gpu_id', ','.join(gpus), *(['--multiprocessing-distributed'] if len(gpus) > 1 else [])]


def groups(steps: list[Step], most: int) -> list[list[Step]]:
    """The steps in groups that share a GPU: up to `most` trials of one cell."""
    found: list[list[Step]] = []
    for step in steps:
        group = next((g for g in found if g[0].what == step.what and len(g) < most), None)
        if group:
            group.append(step)
        else:
            found.append([step])
    return found


class Local:
    """The jobs of this process. A signal ends all of them well: each saves, and the same command goes on from there."""

    def __init__(self, name: str, logs: Path, steps: list[Step], places: Places, trial_parallel: int):
        self.name, self.logs, self.places, self.most = name, logs, places, trial_parallel
        self.now = {step: progress(step, logs, set()) for step in steps}
        self.jobs: dict[int, Work] = {}     # number of the place -> work
        self.starts: Counter[Step] = Counter()
        self.signal, self.looked, self.shown = 0, 0.0, None

    def run(self) -> dict[Step, Progress]:
        """Until nothing is left that can run. Where a signal comes, ends this process with 128 + its number."""
        before = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        try:
            while not self.signal:
                self._look()
                self._start()
                self._show()
                if not self.jobs:
                    break
                time.sleep(0.2)
            if self.signal:
                self._stop()
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)
        if sys.stdout.isatty():
            print()
        return self.now

    def _look(self):
        before = self._running()
        self.jobs = {place: work for place, work in self.jobs.items() if not work.ended()}
        running = self._running()
        if before != running or time.monotonic() - self.looked > 2:
            self.looked = time.monotonic()
            for step in before:
                self.now[step] = progress(step, self.logs, running)
                record = Record(self.logs, step)
                if step not in running and record.deaths():
                    self._print(f'{step.name}: {record.last_lines()[-1]} ({record.log})')
            for step, now in self.now.items():
                if now.state == LEFT and step.after and self.now[step.after].state in (FAILED, WAITING):
                    now.state = WAITING

    def _running(self):
        return {step for work in self.jobs.values() for step in work.processes}

    def _start(self):
        """Start steps on free devices. A step that a signal ends is started again, but at most MOST_STARTS times."""
        ready = [step for step, now in self.now.items() if now.state == LEFT and self.starts[step] < MOST_STARTS
                 and (step.after is None or self.now[step.after].state == DONE)]
        free = [place for place in range(len(self.places.flags)) if place not in self.jobs]
        for place, steps in zip(free, groups(ready, self.most), strict=False):
            self.jobs[place] = Work(self.logs, steps, self.places.flags[place], self.places.threads)
            self.jobs[place].start()
            self.starts.update(steps)
            for step in steps:
                self.now[step].state = RUNNING

    def _show(self):
        """One live line in a terminal; elsewhere a line whenever a step has ended."""
        text = summary(self.name, self.now, len(self.places.flags) * self.most)
        if sys.stdout.isatty():
            self._print(text, end='')
        elif (ended := Counter(now.state for now in self.now.values() if now.state in (DONE, FAILED))) != self.shown:
            self.shown = ended
            self._print(text)

    def _print(self, text, end='\n'):
        """Print a text; in a terminal it replaces the live line."""
        print('\r\x1b[K' * sys.stdout.isatty() + text, end=end, flush=True)

    def _on_signal(self, number, _):
        if self.signal:         # a second one: at once
            for work in self.jobs.values():
                work.kill()
        self.signal = self.signal or number

    def _stop(self):
        print(f'\n{signal.Signals(self.signal).name}: {len(self._running())} running; each saves and ends', flush=True)
        self._end()
        print('stopped; the same command goes on', flush=True)
        sys.exit(128 + self.signal)

    def _end(self):
        """Whatever happened, also where nothing can be printed any more: each run saves and ends."""
        for work in self.jobs.values():
            work.signal(signal.SIGTERM)
        for work in self.jobs.values():
            work.stop()
