"""Run a table or a search as array jobs of Slurm, through submitit."""
import contextlib
import io
import math
import os
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from analysis.runs import read_or_empty
from helper.cli import number
from helper.errors import UserError, import_optional, printable
from helper.files import write_json
from helper.launch import STOP_SIGNALS

from .devices import check_trial_parallel, cpu_threads, device_flags, group_trials
from .planned_run import ROOT, PlannedRun, waves
from .processes import stop_signals_handled
from .progress import DONE, FAILED, LEFT, MAX_STARTS, PRUNED, RUNNING, Progress, progress_of, summary
from .search import Search
from .slurm_commands import ask, check_commands, check_partition, configured, message, parse_option
from .slurm_job import NOTICE, START, Job

POLL = 5            # seconds between two queries of the queue
TRIALS = 4          # jobs of a search at the same time without --jobs: TPE learns from finished trials
SHOWN = 3           # jobs that ended without their runs to print, and lines of each
USUAL = {'None', 'Dependency', 'BeginTime'}        # reasons to wait that need no message; BeginTime: queued again


def add_arguments(add: Callable) -> None:
    add('--partition', help="where the jobs run; default: Slurm's default")
    add('--cpus', type=number(int, low=1, high=1024), default=4, help='cores of each job')
    add('--time', type=number(int, low=2, high=10**6), default=1440,
        help='minutes of each job; a run that needs more is queued again and continues')
    add('--sbatch', nargs='+', default=[], metavar='KEY=VALUE', help='other options of sbatch: account=vision qos=low')


def check_arguments(opt, parser) -> None:
    """Raise UserError for flags of Slurm without --cluster slurm."""
    given = [name for name in ('partition', 'cpus', 'time', 'sbatch') if getattr(opt, name) != parser.get_default(name)]
    if given and opt.cluster != 'slurm':
        parser.error(f'--{given[0]}: needs --cluster slurm; give that too, or leave it out')


class Slurm:
    """The jobs of a table. They live on if this process ends without cancelling them; the same command finds them."""

    def __init__(self, opt, name: str, save: Path, until: float = math.inf):
        """until: the time of time.monotonic() at which all jobs are cancelled, which then save.

        Raises UserError if submitit or Slurm is missing, and for jobs that Slurm would never start.
        """
        self.submitit = import_optional('submitit', '--cluster slurm')
        check_commands()
        self.opt, self.name, self.save, self.logs = opt, name, save, save / 'logs'
        self.registry = save / 'slurm.json'
        self.signals: list[int] = []        # received so far
        self.starts: Counter[PlannedRun] = Counter()        # of the trials of a search
        self.until = until
        self.sbatch_options = dict(parse_option(text) for text in opt.sbatch)
        self.cluster = configured('ClusterName')
        check_partition(opt.partition, opt.cpus, opt.time, has_qos='qos' in self.sbatch_options)
        self.gpus = 1 if opt.gpus is None else opt.gpus
        check_trial_parallel(opt.trial_parallel, self.gpus)
        share = max(1, opt.cpus // opt.trial_parallel)
        self.threads = cpu_threads(self.gpus, share)
        self.flags = device_flags([str(i) for i in range(self.gpus)], share)

    def run(self, runs: list[PlannedRun], search: Search | None = None) -> dict[PlannedRun, Progress]:
        """Submit the runs that are neither done nor queued, and those that a search gives out; wait for all jobs.

        Ctrl-C and SIGTERM cancel the jobs, which save and end; another signal leaves them in the queue.
        """
        with stop_signals_handled(lambda signal_number, _: self.signals.append(signal_number)):
            jobs = self._queued_jobs()
            queued = {name for names in jobs.values() for name in names}
            self._submit([[run for run in wave if run.name not in queued
                           and progress_of(run, self.logs).state in (LEFT, RUNNING)] for wave in waves(runs)], jobs)
            progress = self._wait(runs, jobs, search)
        self._explain(progress, jobs)
        return progress

    def _queued_jobs(self):
        """Return job -> names of its runs, for the queued jobs of an earlier process."""
        registry = read_or_empty(self.registry, dict)
        queue, jobs = self._queue(), registry.get('jobs')
        if jobs and registry.get('cluster') != self.cluster:
            print(printable(f'{self.registry}: names jobs of the cluster {registry.get("cluster")}; this is '
                            f'{self.cluster}, so they are left alone'))
            return {}
        return {job: names for job, names in jobs.items() if job in queue} if isinstance(jobs, dict) else {}

    def _queue(self) -> dict[str, str]:
        """Return job ('JOB' or 'ARRAY_TASK') -> why it waits, for this user's jobs of this table. Raises UserError."""
        # The name identifies the table: another cluster, or this one after a reset, uses the same job numbers.
        lines = ask('squeue', '-h', '-r', '-u', str(os.getuid()), '-o', '%i|%r|%j').splitlines()
        return {job: why for job, why, name in (line.split('|', 2) for line in lines) if name == self.name}

    def _cancel(self, jobs, give_up: Callable[[], bool]) -> None:
        """Cancel jobs until none is in the queue, or until give_up()."""
        left = sorted(jobs)
        while left and not give_up():
            for i in range(0, len(left), 100):
                with contextlib.suppress(UserError):    # some have just ended, or Slurm does not answer
                    ask('scancel', *left[i:i + 100])
            time.sleep(1)
            with contextlib.suppress(UserError):
                left = sorted({*jobs} & {*self._queue()})

    def _submit(self, waves, jobs):
        """Submit an array for each wave, which waits for its teachers, and add it to `jobs`. If one is refused, cancel
        the others and raise UserError."""
        job_of = {name: job for job, names in jobs.items() for name in names}
        new, last_array = {}, None
        max_size = max(1, int(configured('MaxArraySize') or 1001))
        for wave in waves:
            groups = group_trials(wave, self.opt.trial_parallel)
            for array in (groups[i:i + max_size] for i in range(0, len(groups), max_size)):
                dependencies = {job_of[run.teacher_run.name] for group in array for run in group
                                if run.teacher_run and run.teacher_run.name in job_of}
                if self.opt.jobs and last_array:      # --jobs limits all arrays together
                    dependencies.add(last_array)
                if self.signals:
                    break
                try:
                    with _signals_blocked():
                        submitted = self._submit_array(array, sorted(dependencies))
                        new |= {job: [run.name for run in group] for job, group in zip(submitted, array, strict=True)}
                        write_json(self.registry, {'cluster': self.cluster, 'jobs': jobs | new})
                except (UserError, RuntimeError, OSError, ValueError) as error:
                    self._cancel(new, lambda: bool(self.signals))
                    raise UserError(f'--cluster slurm: the jobs were not taken ({message(error)})') from error
                last_array = submitted[0].partition('_')[0]
                job_of |= {name: job for job, names in new.items() for name in names}
        jobs |= new

    def _submit_array(self, groups, dependencies):
        """Submit a job for each group of runs. Returns the ids of the jobs."""
        executor = self.submitit.AutoExecutor(
            self.save / 'slurm', cluster='slurm', slurm_max_num_timeout=10**6,
            slurm_python=shlex.join([sys.executable, '-c', START]))
        executor.update_parameters(
            name=self.name, timeout_min=self.opt.time, cpus_per_task=self.opt.cpus, tasks_per_node=1, nodes=1,
            slurm_array_parallelism=min(self.opt.jobs or len(groups), len(groups)), slurm_signal_delay_s=NOTICE,
            slurm_setup=[f'export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}'],
            slurm_srun_args=['--cpus-per-task', str(self.opt.cpus)],    # since Slurm 22.05 srun ignores sbatch's
            slurm_additional_parameters={'requeue': True, **self.sbatch_options, **(
                {'dependency': 'afterany:' + ':'.join(dependencies)} if dependencies else {})},
            **({'slurm_partition': self.opt.partition} if self.opt.partition else {}),
            **({'gpus_per_node': self.gpus} if self.gpus else {}))
        with contextlib.redirect_stderr(io.StringIO()):     # submitit also prints the text of its exception
            submitted = executor.map_array(Job(), [self.logs] * len(groups), groups, [self.flags] * len(groups),
                                           [self.threads] * len(groups))
        return [job.job_id for job in submitted]

    def _wait(self, runs, jobs, search):
        """Show the progress until none of the jobs is in the queue, and a search has no more runs."""
        progress, shown, ours = dict.fromkeys(runs), None, None
        while ours is None or ours or (search and search.is_waiting):
            if self.signals:
                self._leave(jobs)
            if time.monotonic() > self.until:
                self._cancel(jobs, lambda: bool(self.signals))
                search = None
            try:
                queue = self._queue()       # before the files, which are complete once a job has left the queue
                ours, why = {*jobs} & {*queue}, ''
            except UserError:
                ours, why = None, ', squeue does not answer'
            progress = {run: now if now and now.state in (DONE, FAILED, PRUNED) else progress_of(run, self.logs)
                        for run, now in progress.items()}
            if search and ours is not None:
                ours |= self._submit_trials(search, progress, jobs, ours)
            running = sum(now.state == RUNNING for now in progress.values())
            if ours and not running and (reasons := {queue.get(job, 'None') for job in ours} - USUAL):
                why = f', Slurm: {", ".join(sorted(reasons))}'
            at_once = self.opt.jobs or max(1, running)
            text = (search.summary(at_once) if search else summary(self.name, progress, at_once)) + why
            ended = [now.state for now in progress.values() if now.state in (DONE, FAILED, PRUNED)], why
            if sys.stdout.isatty():
                print(f'\r\x1b[K{text}', end='', flush=True)
            elif ended != shown:
                shown = ended
                print(text, flush=True)
            until = time.monotonic() + (POLL if ours is None or ours else 0)
            while time.monotonic() < until and not self.signals:
                time.sleep(0.2)
        for now in progress.values():
            if now.state == RUNNING:        # its job was killed
                now.state = LEFT
        if sys.stdout.isatty():
            print()
        return progress

    def _submit_trials(self, search, progress, jobs, ours) -> set[str]:
        """Cancel hopeless trials, and submit new ones and those whose job has ended without them. Returns new jobs."""
        job_of = {name: job for job in ours for name in jobs[job]}      # in the queue

        def is_queued(run):
            return run.name in job_of

        for run in search.claims:
            if not is_queued(run) and self.starts[run] == MAX_STARTS and progress[run].state in (LEFT, RUNNING):
                progress[run].state = FAILED
        for run in search.update(progress, {run for run in progress if is_queued(run)}):
            with contextlib.suppress(UserError):        # it has just ended
                ask('scancel', job_of[run.name])
        ready = [run for run in search.claims if not is_queued(run)]
        while len(job_of) + len(ready) < (self.opt.jobs or TRIALS) and (run := search.next_run()):
            progress[run] = progress_of(run, self.logs)
            search.update(progress, {run} & {*filter(is_queued, progress)})
            if run in search.claims and not is_queued(run):
                ready.append(run)
        before = {*jobs}
        for run in ready:
            self.starts[run] += 1
            self._submit([[run]], jobs)
        return {*jobs} - before

    def _leave(self, jobs):
        """After a signal: cancel the jobs or leave them, and end this process."""
        cancels = self.signals[0] in (signal.SIGINT, signal.SIGTERM)
        with contextlib.suppress(OSError):      # the terminal may be gone
            print(f'\n{signal.Signals(self.signals[0]).name}: ' + (
                'the jobs are cancelled, and their runs save' if cancels else
                'the jobs continue; the same command finds them again'), flush=True)
        if cancels:
            self._cancel(jobs, lambda: len(self.signals) > 1)
            print('stopped; the same command continues', flush=True)
        sys.exit(128 + self.signals[0])

    def _explain(self, progress, jobs):
        """Print the errors of jobs that ended without their runs."""
        job_of = {name: job for job, names in jobs.items() for name in names}
        left = [run for run, now in progress.items() if now.state == LEFT and run.name in job_of
                and (run.teacher_run is None or progress[run.teacher_run].state == DONE)]
        for run in left[:SHOWN]:
            log = self.save / 'slurm' / f'{job_of[run.name]}_0_log.err'
            lines = log.read_text(errors='replace').splitlines() if log.is_file() else []
            lines = [line for line in lines if 'error' in line.lower()] or lines
            print(f'left: {run.name}, job {job_of[run.name]} ended without it ({log})')
            for line in lines[-SHOWN:]:
                print(f'    {printable(line)[:300]}')
        if left[SHOWN:]:
            print(f'and {len(left) - SHOWN} more')


@contextlib.contextmanager
def _signals_blocked():
    """Delay signals until the end of the context, for this process and for those that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
