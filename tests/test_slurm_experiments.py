"""A table's runs as jobs of a real Slurm, which `sh tests/slurm/start.sh` starts; skipped without it."""
import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from conftest import ROOT, assert_same, outcome_of, slurm, slurm_environment, wait_for_slurm

from helper.device import cores

pytestmark = pytest.mark.usefixtures('cluster', 'clean_up')

HEAD = '''title = "Mini"
options = "--dataset digits --train_fraction 0.2 --batch_size 32 --learning_rate 0.05"
pairs = ["resnet14 -> resnet8"]
'''
TABLES = {
    'full': HEAD + '''seeds = [1, 2]
teacher_options = "--epochs 2"
student_options = "--epochs 2"
auxiliary = "resnet8: pkt -r 1 -a 1 -b 30000"
[rows]
Student = "alone"
KD = "kd -r 1 -a 1 -b 0"
HKD = "hkd -r 1 -a 1 -b 1"
SemCKD = "semckd -r 1 -a 1 -b 10"
''',
    'small': HEAD + '''seeds = [1]
teacher_options = "--epochs 4"
student_options = "--epochs 4"
[rows]
Student = "alone --epochs 2"
SemCKD = "semckd -r 1 -a 1 -b 10"
''',
    'long': HEAD + '''seeds = [1]
[rows]
Student = "alone --epochs 60"
''',
}
TEACHER, STUDENT, SEMCKD = 'teacher-resnet14', 'resnet8-Student-1', 'resnet14-resnet8-SemCKD-1'


class Command:
    """reproduce.py, in a process group of its own, which a Ctrl-C in a terminal would reach."""

    started = []

    def __init__(self, folder, table, *flags, cluster=True):
        self.save, self.output = folder / table, folder / f'{table}-{time.time()}'
        (folder / f'{table}.toml').write_text(TABLES[table])
        where = ['--cluster', 'slurm', '--gpus', 0, '--cpus', 1, '--time', 10, '--partition', 'low'] if cluster else \
                ['--jobs', cores(), '--gpu_id', 'cpu']      # a core for each run here too
        with open(self.output, 'w') as output:
            self.process = subprocess.Popen(
                [*map(str, [sys.executable, ROOT / 'scripts/reproduce.py', f'{table}.toml', '--save_dir', table, *where,
                            *flags])], cwd=folder, env=slurm_environment(), stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL))
        self.started.append(self)

    def wait(self) -> tuple[int, str]:
        """(the exit code, the output)."""
        code = self.process.wait(timeout=500)
        return code, self.output.read_text()

    def end_by(self, number) -> tuple[int, str]:
        os.killpg(self.process.pid, number)
        return self.wait()

    def job(self, step) -> str:
        """The job of a step, once it is submitted."""
        def found():
            with contextlib.suppress(OSError):
                jobs = json.loads((self.save / 'slurm.json').read_text())['jobs']
                return next((job for job, names in jobs.items() if step in names), None)
        return wait_for_slurm(found)

    def log(self, step) -> str:
        log = self.save / 'logs' / f'{step}.log'
        return log.read_text() if log.exists() else ''

    def wait_for_middle(self, step):
        """Until it is in its second epoch."""
        wait_for_slurm(lambda: 'epoch 1: ' in self.log(step))

    def arrays(self) -> int:
        """That were submitted."""
        return len([*(self.save / 'slurm').glob('*_submission.sh')])


def field(job, name) -> str:
    return re.search(rf'\b{name}=(\S*)', slurm('scontrol', 'show', 'job', job))[1]


@pytest.fixture
def clean_up():
    """After a test that failed."""
    yield
    for command in Command.started:
        if command.process.poll() is None:
            command.end_by(signal.SIGINT)
    Command.started.clear()


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    """reference(table): its results on this machine without Slurm."""
    @functools.cache
    def compute(table):
        command = Command(tmp_path_factory.mktemp('reference'), table, cluster=False)
        assert command.wait()[0] == 0
        return results(command)
    return compute


def results(command):
    """All that the runs left, to the bit, and the table."""
    runs = {str(path.parent.relative_to(command.save)): outcome_of(path.parent)
            for path in sorted(command.save.glob('*/*/last.pth'))}
    return {**runs, 'report.csv': (command.save / 'report.csv').read_text()}


def assert_ends(command, reference):
    code, output = command.wait()
    assert code == 0, output
    assert_same(results(command), reference(command.save.name))


def assert_interrupted(log, times=1):
    assert (log.count('SIGTERM: stopped after '), log.count('resuming from ')) == (times, times), log
    assert [log.count(f'epoch {epoch}: ') for epoch in range(1, 5)] == 4 * [1]


def test_plain(tmp_path, reference):
    """Two tables at once, one with two runs in a job, in a folder with a space."""
    folder = tmp_path / 'a folder'
    folder.mkdir()
    full = Command(folder, 'full', '--trial_parallel', 2, '--cpus', 2)
    small = Command(folder, 'small', '--jobs', 1)
    for command, arrays in ((small, 2), (full, 3)):
        assert_ends(command, reference)
        assert command.arrays() == arrays
    assert full.job('resnet14-resnet8-KD-1') == full.job('resnet14-resnet8-KD-2')


@pytest.mark.parametrize('when', ['at its start', 'in the middle'])
def test_preemption_signal(tmp_path, reference, when):
    command = Command(tmp_path, 'small')
    job = command.job(SEMCKD)
    if when == 'in the middle':
        command.wait_for_middle(SEMCKD)
    else:
        log = command.save / 'slurm' / f'{job}_0_log.out'
        wait_for_slurm(lambda: log.exists() and 'Loading pickle' in log.read_text())       # and with it torch
    slurm('scancel', '--signal', 'USR2', job)
    assert_ends(command, reference)
    assert field(job, 'Restarts') == '1'
    assert_interrupted(command.log(SEMCKD), times=int(when == 'in the middle'))


def test_requeue(tmp_path, reference):
    """Of the teacher; the others still wait for it."""
    command = Command(tmp_path, 'small')
    command.wait_for_middle(TEACHER)
    slurm('scontrol', 'requeue', command.job(TEACHER))
    assert_ends(command, reference)
    assert_interrupted(command.log(TEACHER))


def test_time_limit(tmp_path, reference):
    command = Command(tmp_path, 'long', '--time', 2)
    job = command.job(STUDENT)
    assert_ends(command, reference)
    assert field(job, 'Restarts') != '0' and field(job, 'JobState') == 'COMPLETED'


def test_preemption(tmp_path, reference):
    command = Command(tmp_path, 'small')
    command.wait_for_middle(TEACHER)
    slurm('sbatch', '--partition', 'high', '--nodes', 2, '--exclusive', '--output', '/dev/null', '--wrap', 'sleep 1')
    job = command.job(TEACHER)
    assert_ends(command, reference)
    assert field(job, 'Restarts') == '1'
    assert_interrupted(command.log(TEACHER))


def test_drained_node(tmp_path, reference):
    """What runs there goes on; what comes later starts elsewhere."""
    command = Command(tmp_path, 'small')
    command.wait_for_middle(TEACHER)
    node = field(command.job(TEACHER), 'NodeList')
    slurm('scontrol', 'update', f'nodename={node}', 'state=drain', 'reason=test')
    try:
        assert_ends(command, reference)
        assert field(command.job(SEMCKD), 'NodeList') not in ('', node)
    finally:
        slurm('scontrol', 'update', f'nodename={node}', 'state=resume')


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGHUP])
def test_command_ended(tmp_path, reference, number):
    """Its jobs live on, and the same command finds them."""
    command = Command(tmp_path, 'small')
    command.wait_for_middle(TEACHER)
    code, output = command.end_by(number)
    assert code == -9 or (code == 129 and 'SIGHUP: the jobs continue' in output)
    command = Command(tmp_path, 'small')
    assert_ends(command, reference)
    assert command.arrays() == 2
    assert 'resuming' not in command.log(TEACHER)


def test_ctrl_c(tmp_path, reference):
    command = Command(tmp_path, 'small')
    command.wait_for_middle(TEACHER)
    jobs = {command.job(TEACHER), command.job(SEMCKD)}
    code, output = command.end_by(signal.SIGINT)
    assert code == 130 and output.endswith('stopped; the same command continues\n')
    assert not jobs & {*slurm('squeue', '-h', '-r', '-o', '%i').split()}
    command = Command(tmp_path, 'small')
    assert_ends(command, reference)
    assert_interrupted(command.log(TEACHER))


def test_cancelled_by_hand(tmp_path, reference):
    """The command ends, and says what is left and why."""
    command = Command(tmp_path, 'small')
    command.wait_for_middle(TEACHER)
    job = command.job(TEACHER)
    slurm('scancel', job)
    code, output = command.wait()
    assert code == 1 and f'left: {TEACHER}, job {job} ended without it' in output and ' CANCELLED ' in output
    assert '1 done, 0 running, 0 failed, 2 left' in output
    command = Command(tmp_path, 'small')
    assert_ends(command, reference)
    assert_interrupted(command.log(TEACHER))


def test_failure(tmp_path, reference):
    """Of the teacher: its student is left out, the other one is not, and --retry does the rest."""
    broken = tmp_path / 'small/models/resnet14_digits_lr_0.05_decay_0.0005_trial_0/last.pth'
    broken.parent.mkdir(parents=True)
    broken.write_text('nothing that a run has written')
    code, output = Command(tmp_path, 'small').wait()
    assert code == 1 and '1 done, 0 running, 1 failed, 0 left, 1 without its teacher' in output
    assert re.search(rf'^failed: {TEACHER} .*\n    error: .*last.pth', output, re.M) and 'left: ' not in output
    command = Command(tmp_path, 'small')
    assert command.wait()[0] == 1 and command.arrays() == 2         # what has failed is not submitted again
    broken.unlink()
    assert_ends(Command(tmp_path, 'small', '--retry'), reference)
