"""Run the steps of a table as array jobs of Slurm, by submitit; a pre-empted one is queued again, and goes on."""
import getpass
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from helper.cli import number
from helper.errors import UserError, reason
from helper.files import read_json, write_json
from helper.launch import STOP_SIGNALS

from .local import gpu_flags, groups
from .state import DONE, FAILED, LEFT, RUNNING, Progress, progress, result, summary
from .steps import ROOT, Step, waves
from .work import Work

NOTICE = 90         # seconds before its time limit at which a job is told
POLL = 5            # seconds between two looks at the queue


def add_arguments(add: Callable) -> None:
    add('--partition', help="where the jobs run; else Slurm's default")
    add('--cpus', type=number(int, low=1, high=1024), default=4, help='cores of each job')
    add('--time', type=number(int, low=2, high=10**6), default=1440,
        help='minutes of each job; one that needs more is queued again and goes on')
    add('--sbatch', nargs='+', default=[], metavar='KEY=VALUE', help='more for sbatch, as account=vision qos=low')


class Job:
    """What a job does: some steps at the same time. submitit pickles it, calls it, and knows its `checkpoint`."""

    def __init__(self):
        self.work = None

    def __call__(self, logs: Path, steps: list[Step], placement: list[str], threads: int | None) -> None:
        """As Work. A step whose teacher has failed is left out."""
        ready = [step for step in steps if not result(step) and (step.after is None or result(step.after))]
        self.work = Work(logs, ready, placement, threads)
        self.work.start()
        while not self.work.ended():
            time.sleep(0.2)

    def checkpoint(self, *arguments):
        """The job is pre-empted, or its time is nearly over: the runs save and end, and the job is queued again."""
        from submitit.helpers import DelayedSubmission
        if self.work:
            self.work.stop()
        return DelayedSubmission(Job(), *arguments)


class Slurm:
    """The jobs of a table. They live on when this process ends without cancelling them; the next one finds them."""

    def __init__(self, opt, name: str, save: Path):
        """Raises UserError where submitit or Slurm is not there, or the partition is not."""
        try:
            import submitit
        except ImportError as error:
            raise UserError('--cluster slurm: needs submitit, which is not installed; pip install submitit') from error
        if not shutil.which('sbatch') or not shutil.which('squeue'):
            raise UserError('--cluster slurm: there is no sbatch here; run this where Slurm\'s commands are, or leave '
                            'it out to run on this machine')
        self.submitit, self.opt, self.name, self.save, self.logs = submitit, opt, name, save, save / 'logs'
        self._queue = 'squeue', '-h', '-r', '-u', getpass.getuser(), '-o', '%i'
        self.signal = 0
        self._check_partition()
        more = {}
        for text in opt.sbatch:
            key, equals, value = text.partition('=')
            if not equals or not re.fullmatch(r'[a-z][a-z_-]*', key):
                raise UserError(f'--sbatch {text}: give KEY=VALUE, as account=vision')
            more[key.replace('-', '_')] = value
        self.more = more
        share = max(1, opt.cpus // opt.trial_parallel)
        gpus = 1 if opt.gpus is None else opt.gpus
        if gpus > 1 and opt.trial_parallel > 1:
            raise UserError(f'--trial_parallel {opt.trial_parallel}: trials share one GPU; leave it out, or --gpus')
        self.gpus, self.threads = gpus, None if gpus else share
        self.flags = [*(gpu_flags([str(i) for i in range(gpus)]) if gpus else ['--gpu_id', 'cpu']),
                      '--num_workers', str(share)]

    def _check_partition(self):
        found = _ask('sinfo', '-h', '-o', '%R')
        names = sorted({*found.split()})
        if self.opt.partition is not None and self.opt.partition not in names:
            raise UserError(f'--partition {self.opt.partition}: no such partition; there are: {", ".join(names)}')

    def run(self, steps: list[Step]) -> dict[Step, Progress]:
        """Submit what is neither done nor queued already, and wait for all of it.

        Ctrl-C and SIGTERM cancel the jobs, which save and end; another signal leaves them in the queue.
        """
        before = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        try:
            jobs = self._queued()
            named = {step.name: step for step in steps}
            queued = {named[name]: job for job, names in jobs.items() for name in names if name in named}
            now = {step: progress(step, self.logs) for step in steps}
            left = [step for step in steps if now[step].state in (LEFT, RUNNING) and step not in queued]
            jobs |= self._submit(left, queued)
            return self._watch(steps, jobs)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _queued(self):
        """job -> names of its steps, of the jobs of earlier processes that are still in the queue."""
        registry = self.save / 'slurm.json'
        try:
            known = read_json(registry, str(registry)) if registry.exists() else {}
        except UserError:
            known = {}
        active = {*_ask(*self._queue).split()}
        return {job: names for job, names in known.items() if job in active}

    def _active(self):
        """The ids of this user's jobs in the queue, 'ARRAY_TASK'; None where the queue does not answer now."""
        try:
            return {*_ask(*self._queue).split()}
        except UserError:
            return None

    def _submit(self, steps, queued):
        """One array for each wave, which begins when the jobs that it waits for have ended, however they ended."""
        jobs, job_of = {}, dict(queued)
        for wave in waves(steps):
            parts = groups(wave, self.opt.trial_parallel)
            first = sorted({job_of[step.after].partition('_')[0] for step in wave
                            if step.after in job_of})
            executor = self.submitit.AutoExecutor(self.save / 'slurm', cluster='slurm', slurm_max_num_timeout=10**6)
            executor.update_parameters(
                name=self.name, timeout_min=self.opt.time, cpus_per_task=self.opt.cpus, tasks_per_node=1, nodes=1,
                slurm_array_parallelism=min(self.opt.jobs or len(parts), len(parts)), slurm_signal_delay_s=NOTICE,
                slurm_setup=[f'export PYTHONPATH={shlex.quote(str(ROOT))}:$PYTHONPATH'],
                slurm_additional_parameters={'requeue': True, **self.more,
                                             **({'dependency': 'afterany:' + ':'.join(first)} if first else {})},
                **({'slurm_partition': self.opt.partition} if self.opt.partition else {}),
                **({'gpus_per_node': self.gpus} if self.gpus else {}))
            try:
                submitted = executor.map_array(Job(), [self.logs] * len(parts), parts, [self.flags] * len(parts),
                                               [self.threads] * len(parts))
            except (self.submitit.core.utils.FailedJobError, OSError, ValueError) as error:
                raise UserError(f'--cluster slurm: the jobs were not taken ({reason(error, 500)})') from error
            for job, part in zip(submitted, parts, strict=True):
                jobs[job.job_id] = [step.name for step in part]
                job_of |= dict.fromkeys(part, job.job_id)
        return jobs

    def _watch(self, steps, jobs):
        write_json(self.save / 'slurm.json', jobs)
        now, shown = {}, None
        while True:
            active = self._active()
            now = {step: now[step] if step in now and now[step].state == DONE else progress(step, self.logs)
                   for step in steps}
            text = summary(self.name, now, self.opt.jobs or max(1, sum(p.state == RUNNING for p in now.values())))
            if sys.stdout.isatty():
                print(f'\r\x1b[K{text}', end='', flush=True)
            elif (ended := [p.state for p in now.values() if p.state in (DONE, FAILED)]) != shown:
                shown = ended
                print(text, flush=True)
            if self.signal:
                self._leave(jobs)
            if active is not None and not active & jobs.keys():
                return now
            until = time.monotonic() + POLL
            while time.monotonic() < until and not self.signal:
                time.sleep(0.2)

    def _leave(self, jobs):
        """After a signal: cancel the jobs, or leave them. Ends this process."""
        what = 'the jobs go on; the same command finds them again'
        if self.signal in (signal.SIGINT, signal.SIGTERM):
            active = (self._active() or {*jobs}) & jobs.keys()
            for part in range(0, len(active), 100):
                _ask('scancel', *sorted(active)[part:part + 100])
            while (self._active() or set()) & jobs.keys():
                time.sleep(1)
            what = 'the jobs are cancelled, their runs saved; the same command goes on'
        print(f'\n{signal.Signals(self.signal).name}: {what}', flush=True)
        sys.exit(128 + self.signal)

    def _on_signal(self, number, _):
        self.signal = self.signal or number


def _ask(*words: str) -> str:
    """What one of Slurm's commands prints. Raises UserError."""
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, 'stderr', None) or error
        raise UserError(f'--cluster slurm: {words[0]} does not answer ({reason(said)})') from error
