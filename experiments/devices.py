"""The devices for a table's runs: which GPUs or CPU cores each run uses."""
import os

import torch

from analysis.runs import group_runs
from helper.device import cores
from helper.errors import UserError

from .planned_run import PlannedRun


class Devices:
    """The flags of each job that runs at the same time, and the CPU threads of its runs."""

    def __init__(self, gpu_id: str | None, jobs: int | None, gpus_per_run: int | None, trial_parallel: int):
        """gpu_id: 'cpu', or GPUs with commas; None: all GPUs. Raises UserError."""
        available = [str(i) for i in range(torch.cuda.device_count())]
        gpus = (available or ['cpu']) if gpu_id is None else gpu_id.split(',')
        if gpus == ['cpu'] or (gpu_id is None and gpus_per_run == 0):
            if gpus_per_run:
                raise UserError(f'--gpus {gpus_per_run}: ' + ('there is no GPU here' if gpu_id is None else
                                                              '--gpu_id is cpu') + '; leave it out')
            groups = [[]] * (jobs or max(1, cores() // trial_parallel))
        else:
            groups = _groups_of_gpus(gpus, available, gpu_id, gpus_per_run)
            check_trial_parallel(trial_parallel, len(groups[0]))
            groups = [groups[job % len(groups)] for job in range(jobs or len(groups))]
        self.gpus = len(groups[0])      # of each run
        share = max(1, cores() // (len(groups) * trial_parallel))
        self.flags = [device_flags(group, share) for group in groups]
        self.threads = cpu_threads(self.gpus, share)


def _groups_of_gpus(gpus, available, gpu_id, gpus_per_run):
    """Return the GPUs in groups, one for each run at the same time."""
    if unknown := [gpu for gpu in gpus if gpu not in available]:
        raise UserError(f'--gpu_id {gpu_id}: there is no GPU {unknown[0]}; ' +
                        (f'there are {", ".join(available)}' if available else 'give cpu'))
    if len({*gpus}) < len(gpus):
        raise UserError(f'--gpu_id {gpu_id}: names a GPU twice; give each once, and --jobs for several runs on one')
    if gpus_per_run == 0:
        raise UserError(f'--gpus 0: --gpu_id {gpu_id} names GPUs; leave one of the two out')
    size = gpus_per_run or 1
    if size > len(gpus):
        raise UserError(f'--gpus {size}: --gpu_id {",".join(gpus)} names {len(gpus)}')
    return [gpus[i:i + size] for i in range(0, len(gpus) - size + 1, size)]


def check_trial_parallel(trial_parallel: int, gpus: int) -> None:
    if gpus > 1 and trial_parallel > 1:
        raise UserError(f'--trial_parallel {trial_parallel}: trials share one GPU; leave it out, or --gpus')


def device_flags(gpus: list[str], workers: int) -> list[str]:
    """Return the flags of a run on these GPUs, or on the CPU if there are none."""
    return ['--gpu_id', ','.join(gpus) or 'cpu', *(['--multiprocessing-distributed'] if len(gpus) > 1 else []),
            '--num_workers', str(workers)]


def cpu_threads(gpus: int, cores_per_run: int) -> str | None:
    """Return OMP_NUM_THREADS of a run on the CPU: the exported value, else its cores. None for a run on GPUs."""
    return None if gpus else os.environ.get('OMP_NUM_THREADS') or str(cores_per_run)


def group_trials(runs: list[PlannedRun], size: int) -> list[list[PlannedRun]]:
    """Return the runs in groups that share a GPU: up to `size` trials of one cell."""
    return group_runs(runs, lambda group, run: group[0].label == run.label and len(group) < size)
