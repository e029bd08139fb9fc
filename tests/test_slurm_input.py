"""--cluster slurm without a real Slurm: refused input, the arguments of sbatch, and the work of a job."""
import json
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from experiments import slurm, slurm_job
from experiments.planned_run import PlannedRun
from experiments.progress import MAX_STARTS, Record
from options import teacher_options
from scripts import reproduce

pytest.importorskip('submitit')
pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='Slurm is not for Windows')

TABLE = '''title = "Mini"
seeds = [1, 2, 3]
options = "--dataset digits --epochs 1"
pairs = ["resnet14 -> resnet8"]
[rows]
Student = "alone"
KD = "kd -r 1 -a 1 -b 0"
'''
PROGRAMS = {
    'sinfo': 'echo "low* 1:00:00 2"; echo "low* 1:00:00 4"; echo "high 2-00:00:00 8"',
    'squeue': 'cat queue',
    'scancel': 'echo "$@" >> cancelled; : > queue',
    'scontrol': 'echo "ClusterName             = alpha"; echo "MaxArraySize = 1001"',
    'sbatch': 'echo x >> submitted; echo "Submitted batch job $(wc -l < submitted)"',
    'srun': '',
}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A function that replaces a command of Slurm by a shell script."""
    def write(name, text):
        (tmp_path / 'bin' / name).write_text(f'#!/bin/sh\n{text}\n')
        (tmp_path / 'bin' / name).chmod(0o755)

    (tmp_path / 'bin').mkdir()
    for name, text in PROGRAMS.items():
        write(name, text)
    (tmp_path / 'mini.toml').write_text(TABLE)
    (tmp_path / 'queue').touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:/usr/bin:/bin')
    monkeypatch.setattr(slurm, 'POLL', 0)
    return write


@pytest.fixture
def run(call, capfd, programs):
    """run(*flags) runs reproduce.py and returns its exit code, output and errors."""
    def run(*flags):
        with pytest.raises(SystemExit) as ended:
            call(reproduce.main, 'mini.toml', '--save_dir', 'save', '--cluster', 'slurm', '--gpus', 0, '--cpus', 1,
                 '--time', 10, *flags)
        return ended.value.code, *capfd.readouterr()
    return run


def assert_refused(answer, words):
    code, _, errors = answer
    assert code == 2 and words in errors and errors.count('\n') == 1
    assert not Path('queue').read_text()


@pytest.mark.parametrize('flags, words', [
    ('--partition gpu', '--partition gpu: no such partition; there are: high, low'),
    ('--time 61', '--time 61: partition low gives a job at most 60 minutes'),
    ('--time 2881 --partition high', '--time 2881: partition high gives a job at most 2880 minutes'),
    ('--time 1', '--time: 1: give a whole number of at least 2'),
    ('--cpus 5', '--cpus 5: a node of partition low has at most 4'),
    ('--sbatch account', '--sbatch account: give KEY=VALUE'),
    ('--sbatch account=', '--sbatch account=: give KEY=VALUE'),
    ('--sbatch qos=low Account=vision', '--sbatch Account=vision: give KEY=VALUE'),
    ('--sbatch time=5', '--sbatch time=5: give it by --time'),
    ('--sbatch cpus_per_task=5', '--sbatch cpus_per_task=5: give it by --cpus'),
    ('--sbatch array=0-5', '--sbatch array=0-5: reproduce.py sets this option itself'),
])
def test_refused_flags(run, flags, words):
    assert_refused(run(*flags.split()), words)
    assert not Path('submitted').exists()


@pytest.mark.parametrize('name, text, words', [
    ('sinfo', 'echo "high 1:00:00 4"', '--partition: this Slurm has no default; there are: high'),
    ('sinfo', 'echo "slurm_load_partitions: Unable to contact" >&2; exit 1', 'sinfo does not answer (slurm_load_part'),
    ('squeue', 'echo "squeue: error" >&2; exit 1', 'squeue does not answer'),
    ('sbatch', 'echo "sbatch: error: Invalid account" >&2; exit 1', 'the jobs were not taken (Invalid account)'),
    ('sbatch', """echo "sbatch: unrecognized option '--foo=1'
Try \\"sbatch --help\\" for more information" >&2; exit 1""",
     "the jobs were not taken (unrecognized option '--foo=1')"),
    ('sbatch', 'echo 17', 'the jobs were not taken'),
])
def test_answers_of_slurm(run, programs, name, text, words):
    programs(name, text)
    assert_refused(run(), words)


def test_missing(run, tmp_path, monkeypatch):
    (tmp_path / 'bin/sbatch').unlink()
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'))
    assert_refused(run(), 'there is no sbatch here')
    monkeypatch.setitem(sys.modules, 'submitit', None)
    assert_refused(run(), 'pip install submitit')


def test_limits_of_a_qos(run):
    code, output, _ = run('--time', 61, '--sbatch', 'qos=long')
    assert code == 1 and '0 done, 0 running, 0 failed, 7 left' in output


def test_second_array_refused(run, programs):
    """If sbatch refuses the second array, the first is cancelled."""
    programs('sbatch', '[ ! -f submitted ] || { echo "sbatch: error: Too many" >&2; exit 1; }\n'
                       'echo "1_0|Priority|mini" > queue; touch submitted; echo "Submitted batch job 1"')
    assert_refused(run(), 'the jobs were not taken (Too many)')
    assert Path('cancelled').read_text() == '1_0 1_1 1_2 1_3\n'


def scripts():
    """array -> its parameters."""
    return {path.name.partition('_')[0]: dict(re.findall(r'#SBATCH --([\w-]+)=?(.*)', path.read_text()))
            for path in sorted(Path('save/slurm').glob('[0-9]*_submission.sh'))}


def test_what_sbatch_is_given(run):
    code, output, errors = run('--cpus', 4, '--trial_parallel', 2, '--sbatch', 'account=vision', 'mem-per-cpu=2G')
    assert code == 1 and 'not all is done' in errors
    assert 'left: teacher-resnet14, job 1_0 ended without it (save/slurm/1_0_0_log.err)' in output
    first, second = scripts().values()
    assert first.items() >= {
        'account': 'vision', 'mem-per-cpu': '2G', 'cpus-per-task': '4', 'time': '10', 'requeue': '', 'array': '0-2%3',
        'job-name': 'mini', 'signal': 'USR2@90', 'open-mode': 'append'}.items()
    assert 'dependency' not in first and 'partition' not in first and 'gpus-per-node' not in first
    assert second['array'] == '0-1%2' and second['dependency'] == 'afterany:1_0'
    script = Path('save/slurm/1_submission.sh').read_text()
    assert re.search('^srun .* --cpus-per-task 4 ', script, re.M)     # srun does not take it from sbatch


@pytest.mark.parametrize('jobs, waits', [(None, [None, None, '1_0', '1_0']), (2, [None, '1', '1_0:2', '1_0:3'])])
def test_more_jobs_than_an_array_may_have(run, programs, jobs, waits):
    programs('scontrol', 'echo "MaxArraySize            = 2"')
    run(*(['--jobs', jobs] if jobs else []))
    found = scripts()
    assert [found[str(n)].get('dependency') for n in range(1, 5)] == \
        [wait and f'afterany:{wait}' for wait in waits]
    assert [found[str(n)].get('array') for n in range(1, 5)] == ['0-1%2', '0-1%2', '0-1%2', None]


def test_jobs_of_before(run, programs):
    """Queued jobs are not submitted again. An unreadable list of jobs is ignored."""
    programs('squeue', 'cat queue; : > queue')
    Path('save').mkdir()
    Path('save/slurm.json').write_text('[')
    run()
    assert scripts().keys() == {'1', '2'}
    Path('queue').write_text('1_0|None|mini\n1_2|Resources|mini\n2_1|Dependency|mini\n1_1|None|other\n9|None|mini\n')
    run()
    assert {number: (script['array'], script.get('dependency')) for number, script in scripts().items()} == {
        '1': ('0-3%4', None), '2': ('0-2%3', 'afterany:1_0'),
        '3': ('0-1%2', None), '4': ('0-1%2', 'afterany:1_0')}


@pytest.mark.parametrize('queue, cluster, said', [
    ('1_0|None|other', 'alpha', ''),
    ('1_0|None|mini', 'beta', 'save/slurm.json: names jobs of the cluster beta; this is alpha, so they are left alone'),
])
def test_a_foreign_job_of_the_same_number(run, programs, queue, cluster, said):
    """A foreign job is neither awaited nor cancelled, and the table's run is submitted."""
    programs('squeue', 'cat queue; : > queue')
    Path('save').mkdir()
    Path('save/slurm.json').write_text(json.dumps({'cluster': cluster, 'jobs': {'1_0': ['teacher-resnet14']}}))
    Path('queue').write_text(f'{queue}\n')
    _, output, _ = run()
    assert scripts()['1']['array'] == '0-3%4' and not Path('cancelled').exists()
    assert [line for line in output.splitlines() if 'slurm.json' in line] == ([said] if said else [])
    names = ['teacher-resnet14', *(f'resnet8-Student-{trial}' for trial in (1, 2, 3))]
    assert json.loads(Path('save/slurm.json').read_text()) == {'cluster': 'alpha', 'jobs': {
        **{f'1_{i}': [name] for i, name in enumerate(names)},
        **{f'2_{i}': [f'resnet14-resnet8-KD-{i + 1}'] for i in range(3)}}}


def test_squeue_fails_for_a_while(run, programs):
    programs('squeue', """echo x >> looks
case $(wc -l < looks) in
    1) ;;
    2) exit 1 ;;
    3) echo "1_0|Resources|mini" ;;
esac""")
    code, output, _ = run()
    assert code == 1
    assert re.findall('7 left(.*)', output)[:3] == [', squeue does not answer', ', Slurm: Resources', '']


class TestJob:
    """The function that submitit calls in a job."""

    @pytest.fixture
    def make_run(self, tmp_path):
        """make_run(program) returns a PlannedRun of the program."""
        (tmp_path / 'logs').mkdir()

        def make_run(program, name='a', after=None):
            script = tmp_path / f'{name}.py'
            script.write_text(f'import os, signal, sys, time\nprint("began", flush=True)\n{program}')
            return PlannedRun(name, name, str(script), [], teacher_options(['--seed', '1']), tmp_path / name,
                        tmp_path / name / 'x', '', 1, after)
        return make_run

    @pytest.mark.parametrize('program, waits', [
        ('sys.exit(1)', False), ('os.kill(os.getpid(), signal.SIGSEGV)', False),
        ('sys.exit(143)', True), ('os.kill(os.getpid(), signal.SIGTERM)', True)])
    def test_end(self, tmp_path, monkeypatch, make_run, program, waits):
        """A job whose runs were told to end waits for Slurm, which would otherwise consider it complete."""
        monkeypatch.setattr(slurm_job, 'ENDING', 1.5 if waits else 600)
        began = time.monotonic()
        slurm_job.Job()(tmp_path / 'logs', [make_run(program)], [], '1')
        seconds = time.monotonic() - began
        assert seconds > 1.5 if waits else seconds < 600

    def test_a_run_that_always_dies(self, tmp_path, make_run):
        """A run that always dies is started again in the same job, and then counts as failed."""
        died = make_run('os.kill(os.getpid(), signal.SIGKILL)')
        for _ in range(2):
            slurm_job.Job()(tmp_path / 'logs', [died], [], '1')
        lines = [f'ended by SIGKILL (out of memory?), start {start} of {MAX_STARTS}'
                 for start in range(1, MAX_STARTS + 1)]
        assert (tmp_path / 'logs/a.log').read_text().splitlines() == [
            line for said in lines for line in ('began', said)]
        assert Record(tmp_path / 'logs', died).has_failed()

    def test_ports(self, tmp_path, make_run):
        """Two runs of several processes on one machine use different ports."""
        runs = [make_run('print(sys.argv[-2:])', 'a'), make_run('print(sys.argv[-2:])', 'b')]
        slurm_job.Job()(tmp_path / 'logs', runs, ['--gpu_id', '0,1', '--multiprocessing-distributed'], '1')
        ports = {int(re.search(r"--dist-url', 'tcp://127.0.0.1:(\d+)'", (tmp_path / f'logs/{name}.log').read_text())[1])
                 for name in 'ab'}
        assert len(ports) == 2

    def test_left_out(self, tmp_path, make_run):
        """A job skips runs that have failed, and runs without a teacher."""
        failed = make_run('sys.exit(1)')
        for _ in range(2):
            slurm_job.Job()(tmp_path / 'logs', [failed, make_run('', 'b', failed)], [], '1')
        assert (tmp_path / 'logs/a.log').read_text() == 'began\n'
        assert not (tmp_path / 'logs/b.log').exists()

    def test_checkpoint(self, tmp_path, make_run):
        """The signal handler ends the runs that it interrupts."""
        class Ended(Exception):
            pass

        def handler(*_):
            logs = [tmp_path / f'logs/{name}.log' for name in 'ab']
            if all(log.is_file() and 'ready' in log.read_text() for log in logs):
                again.append(job.checkpoint(*arguments))
                raise Ended

        saves = 'signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\nprint("ready", flush=True)\ntime.sleep(60)'
        job, again = slurm_job.Job(), []
        arguments = tmp_path / 'logs', [make_run(saves), make_run(saves, 'b')], [], '1'
        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
            with pytest.raises(Ended):
                job(*arguments)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert (again[0].function.processes, again[0].args) == (None, arguments)
        for each in arguments[1]:
            assert Record(tmp_path / 'logs', each).read()['code'] == 143
'''
'''
