"""Run the steps of a table as array jobs of Slurm, by submitit; a pre-empted one is queued again, and goes on."""
import contextlib
import io
import math
import os
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
from helper.errors import UserError, nearest, printable, reason
from helper.files import read_json, write_json
from helper.launch import STOP_SIGNALS

from .local import gpu_flags, groups, threads_of
from .plan import ROOT, Step, waves
from .processes import Work
from .progress import DONE, FAILED, LEFT, RUNNING, Progress, Record, progress, result, summary

NOTICE = 90         # seconds before its time limit at which a job is told, or up to a minute earlier
SAVING = 60         # of these, how long its runs have to save
ENDING = 600        # seconds that a job whose runs were told to end waits for Slurm to end it too
POLL = 5            # seconds between two looks at the queue
SHOWN = 3           # jobs that ended without their runs, and lines of each
USUAL = {'None', 'Dependency', 'BeginTime'}        # reasons to wait that say nothing; the last: queued again

COMMANDS = 'sbatch', 'squeue', 'sinfo', 'scancel', 'scontrol', 'srun'
# What --sbatch may not say, because this file says it, or because it changes what sbatch answers.
OURS = {'array', 'chdir', 'error', 'job-name', 'nodes', 'ntasks', 'ntasks-per-node', 'open-mode', 'output', 'parsable',
        'quiet', 'requeue', 'signal', 'test-only', 'wait', 'wrap'}
FLAGS = {'partition': '--partition', 'cpus-per-task': '--cpus', 'time': '--time'}

# A job's Python begins with submitit's signal held back, which would end it while it loads torch. Job lets it through.
START = ('import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); '
         'os.execv(sys.executable, [sys.executable, *sys.argv[1:]])')


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

    def __call__(self, logs: Path, steps: list[Step], placement: list[str], threads: str | None) -> None:
        """See Work; skips steps that have failed or have no finished teacher. A step that dies is started again."""
        stopped = False
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        while not stopped and (ready := [step for step in steps if not result(step) and not Record(logs, step).failed()
                                         and (step.after is None or result(step.after))]):
            self.work = Work(logs, ready, placement, threads)
            self.work.start()
            while not self.work.ended():
                time.sleep(0.2)
            stopped = bool({128 + signal.SIGTERM, -signal.SIGTERM} & {*self.work.codes.values()})
            steps = [step for step in ready if Record(logs, step).deaths()]
        # SIGTERM is Slurm's beginning of a cancellation, a requeue, or a pre-emption without another signal. A job that
        # returned now would be complete, and not be queued again.
        until = time.monotonic() + ENDING
        while stopped and time.monotonic() < until:
            time.sleep(0.2)

    def checkpoint(self, *arguments):
        """The job is pre-empted, or its time is nearly over: the runs save and end, and the job is queued again."""
        from submitit.helpers import DelayedSubmission
        if self.work:
            self.work.stop(SAVING)
        return DelayedSubmission(Job(), *arguments)


class Slurm:
    """The jobs of a table. They live on when this process ends without cancelling them; the next one finds them."""

    def __init__(self, opt, name: str, save: Path):
        """Raises UserError where submitit or Slurm is not there, and for jobs that it would never start."""
        try:
            import submitit
        except ImportError as error:
            raise UserError('--cluster slurm: needs submitit, which is not installed; pip install submitit') from error
        if missing := [command for command in COMMANDS if not shutil.which(command)]:
            raise UserError(f"--cluster slurm: there is no {missing[0]} here; run this where Slurm's commands are, or "
                            f'leave it out to run on this machine')
        self.submitit, self.opt, self.name, self.save, self.logs = submitit, opt, name, save, save / 'logs'
        self.signals: list[int] = []        # that came
        self.more = dict(_key_and_value(text) for text in opt.sbatch)
        self.cluster = _configured('ClusterName')
        self._check_partition()
        share = max(1, opt.cpus // opt.trial_parallel)
        gpus = 1 if opt.gpus is None else opt.gpus
        if gpus > 1 and opt.trial_parallel > 1:
            raise UserError(f'--trial_parallel {opt.trial_parallel}: trials share one GPU; leave it out, or --gpus')
        self.gpus, self.threads = gpus, None if gpus else threads_of(share)
        self.flags = [*(gpu_flags([str(i) for i in range(gpus)]) if gpus else ['--gpu_id', 'cpu']),
                      '--num_workers', str(share)]

    def _check_partition(self):
        """sbatch takes jobs that ask for more than there is, which would then wait for ever."""
        nodes = [line.split() for line in _ask('sinfo', '-a', '-h', '-N', '-o', '%P %l %c').splitlines()]
        names = {name.rstrip('*') for name, *_ in nodes}
        wanted = (self.opt.partition or '').split(',') if self.opt.partition is not None else \
            [name.rstrip('*') for name, *_ in nodes if name.endswith('*')]
        if not wanted or not {*wanted} <= names:
            raise UserError(f'--partition {self.opt.partition}: no such partition; {nearest("", names)}' if wanted else
                            f'--partition: this Slurm has no default; {nearest("", names)}')
        limits, cpus = zip(*((_minutes(limit), int(cpus)) for name, limit, cpus in nodes
                             if name.rstrip('*') in wanted), strict=True)
        if self.opt.time > max(limits) and 'qos' not in self.more:     # which can raise the limit
            raise UserError(f'--time {self.opt.time}: partition {wanted[0]} gives a job at most {max(limits):.0f} '
                            f'minutes; a run that needs more is queued again and goes on')
        if self.opt.cpus > max(cpus):
            raise UserError(f'--cpus {self.opt.cpus}: a node of partition {wanted[0]} has at most {max(cpus)}')

    def run(self, steps: list[Step]) -> dict[Step, Progress]:
        """Submit what is neither done nor queued already, and wait for all of it.

        Ctrl-C and SIGTERM cancel the jobs, which save and end; another signal leaves them in the queue.
        """
        before = {number: signal.signal(number, lambda number, _: self.signals.append(number))
                  for number in STOP_SIGNALS}
        try:
            jobs = self._earlier_jobs()
            queued = {name for names in jobs.values() for name in names}
            self._submit([[step for step in wave if step.name not in queued
                           and progress(step, self.logs).state in (LEFT, RUNNING)] for wave in waves(steps)], jobs)
            now = self._watch(steps, jobs)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self._explain(steps, now, jobs)
        return now

    def _earlier_jobs(self):
        """job -> names of its steps, of the jobs of earlier processes that are still in the queue."""
        registry = self.save / 'slurm.json'
        known = {}
        with contextlib.suppress(UserError):
            known = read_json(registry, str(registry))
        known = known if isinstance(known, dict) else {}
        queue, jobs = self._queue(), known.get('jobs')
        if jobs and known.get('cluster') != self.cluster:
            print(printable(f'{registry}: names jobs of the cluster {known.get("cluster")}; this is {self.cluster}, so '
                            f'they are left alone'))
            return {}
        return {job: names for job, names in jobs.items() if job in queue} if isinstance(jobs, dict) else {}

    def _queue(self) -> dict[str, str]:
        """job ('JOB' or 'ARRAY_TASK') -> why it waits, for this user's jobs with the table's name. Raises UserError.

        Job numbers alone do not identify jobs: another cluster, or this one after a reset, reuses them.
        """
        lines = _ask('squeue', '-h', '-r', '-u', str(os.getuid()), '-o', '%i|%r|%j').splitlines()
        found = (line.split('|', 2) for line in lines)
        return {job: why for job, why, name in found if name == self.name}

    def _cancel(self, jobs, enough: Callable[[], bool]) -> None:
        """Cancel jobs, until none is in the queue, or `enough`."""
        left = sorted(jobs)
        while left and not enough():
            for part in range(0, len(left), 100):
                with contextlib.suppress(UserError):    # some have ended meanwhile, or Slurm does not answer now
                    _ask('scancel', *left[part:part + 100])
            time.sleep(1)
            with contextlib.suppress(UserError):
                left = sorted({*jobs} & {*self._queue()})

    def _submit(self, waves, jobs):
        """Add to `jobs` an array for each wave, which begins when the jobs that it waits for have ended in some way.

        Where one is not taken, cancels those before it and raises UserError.
        """
        job_of = {name: job for job, names in jobs.items() for name in names}
        new, last = {}, None
        most = max(1, int(_configured('MaxArraySize') or 1001))
        for wave in waves:
            parts = groups(wave, self.opt.trial_parallel)
            for some in (parts[i:i + most] for i in range(0, len(parts), most)):
                first = {job_of[step.after.name] for part in some for step in part
                         if step.after and step.after.name in job_of}
                if self.opt.jobs and last:      # so that --jobs holds for all arrays together
                    first = {*first, last}
                if self.signals:
                    break
                try:
                    with _signals_held():
                        submitted = self._submit_array(some, sorted(first))
                        new |= {job: [step.name for step in part] for job, part in zip(submitted, some, strict=True)}
                        write_json(self.save / 'slurm.json', {'cluster': self.cluster, 'jobs': jobs | new})
                except (UserError, RuntimeError, OSError, ValueError) as error:
                    self._cancel(new, lambda: bool(self.signals))
                    raise UserError(f'--cluster slurm: the jobs were not taken ({_said(error)})') from error
                last = submitted[0].partition('_')[0]
                job_of |= {name: job for job, names in new.items() for name in names}
        jobs |= new

    def _submit_array(self, parts, first):
        """Returns the jobs' ids, as Slurm shows them."""
        executor = self.submitit.AutoExecutor(
            self.save / 'slurm', cluster='slurm', slurm_max_num_timeout=10**6,
            slurm_python=shlex.join([sys.executable, '-c', START]))
        executor.update_parameters(
            name=self.name, timeout_min=self.opt.time, cpus_per_task=self.opt.cpus, tasks_per_node=1, nodes=1,
            slurm_array_parallelism=min(self.opt.jobs or len(parts), len(parts)), slurm_signal_delay_s=NOTICE,
            slurm_setup=[f'export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}'],
            slurm_srun_args=['--cpus-per-task', str(self.opt.cpus)],        # since Slurm 22.05 not taken from sbatch
            slurm_additional_parameters={'requeue': True, **self.more,
                                         **({'dependency': 'afterany:' + ':'.join(first)} if first else {})},
            **({'slurm_partition': self.opt.partition} if self.opt.partition else {}),
            **({'gpus_per_node': self.gpus} if self.gpus else {}))
        with contextlib.redirect_stderr(io.StringIO()):     # submitit prints what the error says too
            submitted = executor.map_array(Job(), [self.logs] * len(parts), parts, [self.flags] * len(parts),
                                           [self.threads] * len(parts))
        return [job.job_id for job in submitted]

    def _watch(self, steps, jobs):
        """Show how far the steps are, until none of the jobs is in the queue."""
        now, shown = {}, None
        while True:
            if self.signals:
                self._leave(jobs)
            try:
                queue, why = self._queue(), ''       # asked before the files: a job that has left it has written all
            except UserError:
                queue, why = None, ', squeue does not answer'
            now = {step: now[step] if step in now and now[step].state == DONE else progress(step, self.logs)
                   for step in steps}
            ours = {*jobs} & {*queue} if queue is not None else None
            running = sum(p.state == RUNNING for p in now.values())
            if ours and not running:
                waits = sorted({queue[job] for job in ours} - USUAL)
                why = f', Slurm: {", ".join(waits)}' if waits else ''
            text = summary(self.name, now, self.opt.jobs or max(1, running)) + why
            if sys.stdout.isatty():
                print(f'\r\x1b[K{text}', end='', flush=True)
            elif (ended := ([p.state for p in now.values() if p.state in (DONE, FAILED)], why)) != shown:
                shown = ended
                print(text, flush=True)
            if ours is not None and not ours:
                break
            until = time.monotonic() + POLL
            while time.monotonic() < until and not self.signals:
                time.sleep(0.2)
        for progress_of in now.values():
            if progress_of.state == RUNNING:        # killed without a word
                progress_of.state = LEFT
        if sys.stdout.isatty():
            print()
        return now

    def _leave(self, jobs):
        """After a signal: cancel the jobs, or leave them. Ends this process."""
        cancel = self.signals[0] in (signal.SIGINT, signal.SIGTERM)
        name = signal.Signals(self.signals[0]).name
        with contextlib.suppress(OSError):      # the terminal may be gone
            print(f'\n{name}: ' + ('the jobs are cancelled, and their runs save' if cancel else
                                   'the jobs go on; the same command finds them again'), flush=True)
        if cancel:
            self._cancel(jobs, lambda: len(self.signals) > 1)
            print('stopped; the same command goes on', flush=True)
        sys.exit(128 + self.signals[0])

    def _explain(self, steps, now, jobs):
        """Print what Slurm and submitit have written of jobs that ended without their runs."""
        job_of = {name: job for job, names in jobs.items() for name in names}
        left = [step for step in steps if now[step].state == LEFT and step.name in job_of
                and (step.after is None or now[step.after].state == DONE)]
        for step in left[:SHOWN]:
            log = self.save / 'slurm' / f'{job_of[step.name]}_0_log.err'
            lines = log.read_text(errors='replace').splitlines() if log.is_file() else []
            lines = [line for line in lines if 'error' in line.lower()] or lines
            print('\n'.join([f'left: {step.name}, job {job_of[step.name]} ended without it ({log})',
                             *(f'    {printable(line)[:300]}' for line in lines[-SHOWN:])]))
        if left[SHOWN:]:
            print(f'and {len(left) - SHOWN} more')


@contextlib.contextmanager
def _signals_held():
    """A signal waits until the end of it, for this process and for those that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _key_and_value(text):
    key, equals, value = text.partition('=')
    if not equals or not value or not re.fullmatch(r'[a-z][a-z_-]*', key):
        raise UserError(f'--sbatch {text}: give KEY=VALUE, as account=vision')
    name = key.replace('_', '-')
    if name in FLAGS or name in OURS:
        raise UserError(f'--sbatch {text}: ' + (f'give it by {FLAGS[name]}' if name in FLAGS else
                                                'reproduce.py says this to sbatch itself; leave it out'))
    return key.replace('-', '_'), value


def _minutes(limit: str) -> float:
    """Of a time limit as Slurm writes it: '1-02:00:00' is 1560."""
    match = re.fullmatch(r'(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)', limit)
    days, hours, minutes, seconds = (int(text or 0) for text in match.groups()) if match else (0, math.inf, 0, 0)
    return days * 1440 + hours * 60 + minutes + seconds / 60


def _configured(name: str) -> str | None:
    """A value of Slurm's configuration; None where it does not say."""
    match = re.search(rf'^{name}\s*=\s*(\S+)', _ask('scontrol', 'show', 'config'), re.M)
    return match[1] if match else None


def _said(error) -> str:
    """What sbatch answered, without its name and the advice to ask for help."""
    lines = [re.sub(r'^sbatch: (error: )?', '', line) for line in str(error).splitlines()
             if not line.startswith('Try "')]
    return printable(' '.join(lines))[:500] or reason(error)


def _ask(*words: str) -> str:
    """What one of Slurm's commands prints. Raises UserError."""
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, 'stderr', None) or error
        raise UserError(f'--cluster slurm: {words[0]} does not answer ({_said(said)})') from error
