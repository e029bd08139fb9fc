"""The script of docs/distributed.md on a real Slurm, which `sh tests/slurm/start.sh` starts; skipped without it."""
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, assert_same, free_port, outcome, slurm, wait_for_slurm

import train_student
import train_teacher

pytestmark = pytest.mark.usefixtures('cluster')


class Job:
    """A submitted script and its output."""

    def __init__(self, folder: Path, script: str, *flags):
        folder.mkdir()
        (folder / 'script.sh').write_text(script)
        self.log = folder / 'log'
        self.number = slurm('sbatch', '--parsable', '--chdir', ROOT, '--output', self.log, *flags,
                            folder / 'script.sh').strip()

    def field(self, name) -> str:
        return re.search(rf'\b{name}=(\S*)', slurm('scontrol', 'show', 'job', self.number))[1]

    def wait_for_words(self, words):
        wait_for_slurm(lambda: self.log.exists() and words in self.log.read_text())

    def wait(self) -> str:
        """Wait until the job has ended for good, and return its output."""
        wait_for_slurm(lambda: self.field('JobState') not in ('PENDING', 'RUNNING', 'COMPLETING', 'REQUEUED'))
        return self.log.read_text()


def documented(arguments, nodes, tasks) -> str:
    """The script of docs/distributed.md with another command and other values."""
    script = re.search(r'^#!/bin/sh\n.*?(?=^```)', (ROOT / 'docs/distributed.md').read_text(), re.M | re.S)[0]
    for old, new in (('--nodes 2', f'--nodes {nodes}'), ('--ntasks-per-node 4', f'--ntasks-per-node {tasks}'),
                     ('--gpus-per-node 4', f'--gpus-per-node {tasks}'), ('--cpus-per-task 4', '--cpus-per-task 1'),
                     ('train_student.py ... --batch_size 256', f'train_student.py {shlex.join(map(str, arguments))}')):
        assert old in script
        script = script.replace(old, new)
    return script


@pytest.fixture(scope='module')
def arguments(tmp_path_factory, call):
    """The arguments of a student's run on digits that takes some seconds; its teacher has one epoch."""
    save = tmp_path_factory.mktemp('teacher')
    flags = ['--dataset', 'digits', '--gpu_id', 'cpu', '--num_workers', 0, '--seed', 1]
    call(train_teacher.main, '--model', 'resnet14', '--epochs', 1, '--save_dir', save, *flags)
    return ['--path-t', next(save.glob('models/*/resnet14_best.pth')), '--distill', 'hint', '--model_s', 'resnet8',
            '--epochs', 4, *flags]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, call, arguments):
    """The files of a run of two processes without Slurm."""
    save = tmp_path_factory.mktemp('plain')
    call(train_student.main, *arguments, '--save_dir', save, '--multiprocessing-distributed', '--gpu_id', 'cpu,cpu',
         '--dist-url', f'tcp://127.0.0.1:{free_port()}')
    return outcome(save)


@pytest.mark.parametrize('nodes, tasks', [(1, 2), (2, 1)])
def test_documented_script(tmp_path, arguments, uninterrupted, nodes, tasks):
    job = Job(tmp_path / 'job', documented([*arguments, '--save_dir', tmp_path], nodes, tasks))
    log = job.wait()
    assert (job.field('JobState'), job.field('ExitCode'), job.field('Restarts')) == ('COMPLETED', '0:0', '0'), log
    assert '2 processes, cpu' in log and log.count('epoch 4: ') == log.count('best top-1') == 1
    assert_same(outcome(tmp_path), uninterrupted)


@pytest.mark.parametrize('by', ['SIGUSR1', 'a pre-emption', 'a pre-emption with SIGTERM'])
def test_interrupted(tmp_path, arguments, uninterrupted, by):
    """The run saves, the job is queued again, and the run continues to the same weights."""
    script = documented([*arguments, '--save_dir', tmp_path], 2, 1)
    if by == 'a pre-emption with SIGTERM':      # as from a Slurm without preempt_send_user_signal
        script = script.replace('--signal USR1@60 ', '')
    job = Job(tmp_path / 'job', script, '--exclusive')
    job.wait_for_words('epoch 1: ')
    if by == 'SIGUSR1':
        slurm('scancel', '--signal', 'USR1', job.number)
    else:
        Job(tmp_path / 'other', '#!/bin/sh\n', '--partition', 'high', '--nodes', 2, '--exclusive').wait()
    log = job.wait()
    assert (job.field('JobState'), job.field('ExitCode'), job.field('Restarts')) == ('COMPLETED', '0:0', '1'), log
    assert log.count(f'{"SIGTERM" if "SIGTERM" in by else "SIGUSR1"}: stopped after ') == 1
    assert log.count('resuming from ') == 1
    assert [log.count(f'epoch {epoch}: train') for epoch in range(1, 5)] == 4 * [1]
    assert job.field('PreemptTime') == 'None'       # so a task that fails later does not queue the job again
    assert_same(outcome(tmp_path), uninterrupted)


def test_mistake(tmp_path, arguments):
    """A job that fails is not started again."""
    job = Job(tmp_path / 'job', documented([*arguments, '--save_dir', tmp_path, '--epochs', 0], 1, 2))
    log = job.wait()
    assert (job.field('JobState'), job.field('Restarts')) == ('FAILED', '0'), log
    assert '--epochs: 0: ' in log
