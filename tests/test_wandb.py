"""--wandb: what arrives at Weights & Biases, offline, and what happens where it cannot be reached."""
import importlib.machinery
import json
import os
import signal
import struct
import subprocess
import sys
import types

import pytest
from conftest import ROOT, assert_same, free_port, outcome

import train_teacher
from helper.checkpoint import load_checkpoint


def train(script, *arguments, **environment):
    """A script in a process of its own: wandb reads its environment once."""
    return subprocess.Popen([sys.executable, ROOT / script, *map(str, arguments)], text=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment})


def chunks(content: bytes):
    """The records of a .wandb file: blocks of 32 KB with pieces of (checksum, length, type, data), as LevelDB's log."""
    place, record = 7, b''
    while place + 7 <= len(content):
        if (rest := -place % 2**15) < 7:
            place += rest
            continue
        length, kind = struct.unpack('<HB', content[place + 4:place + 7])
        record += content[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):      # the whole of a record, or its last piece
            yield record
            record = b''


def read(folder):
    """What an offline run holds: (its description, [{key: value} of each step])."""
    from wandb.proto.wandb_internal_pb2 import Record
    records = [Record.FromString(chunk) for chunk in chunks(next(folder.glob('*.wandb')).read_bytes())]
    logged = [{'.'.join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
              for record in records if record.HasField('history')]
    return next(record.run for record in records if record.HasField('run')), logged


@pytest.mark.skipif(sys.platform == 'win32', reason='no such signals')
@pytest.mark.slow
def test_a_run_that_is_interrupted(small, teacher, tmp_path):
    """Two parts of one run, which ends in the weights of a run that nobody interrupts and that reports nothing."""
    pytest.importorskip('wandb')
    arguments = ['--path-t', teacher, '--distill', 'semckd+factor', *small, '--init_epochs', 1, '--epochs', 6,
                 '--learning_rate', 0.01, '--resume', 'auto', '--save_dir']
    _, error = (plain := train('train_student.py', *arguments, tmp_path / 'plain')).communicate()
    assert plain.returncode == 0, error
    first = train('train_student.py', *arguments, tmp_path / 'parts', '--wandb', 'nets', WANDB_MODE='offline')
    for line in first.stdout:
        if line.startswith('epoch 2: '):
            first.terminate()
    assert first.wait() == 128 + signal.SIGTERM and first.stderr.read() == ''
    second = train('train_student.py', *arguments, tmp_path / 'parts', '--wandb', 'nets', WANDB_MODE='offline')
    out, error = second.communicate()
    assert second.returncode == 0 and error == '' and out.count('Weights & Biases: ') == 1
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'plain'))

    folder, = tmp_path.glob('parts/student_model/*')
    parts = [read(part) for part in sorted(tmp_path.glob('parts/wandb/offline-run-*'))]
    assert len(parts) == 2 and len({description.run_id for description, _ in parts}) == 1
    for description, _ in parts:
        config = {item.key: json.loads(item.value_json) for item in description.config.update}
        assert (description.display_name, description.project) == (folder.name, 'nets')
        assert (config['distill'], config['seed'], config['processes']) == ('semckd+factor', 1, 1)
    init, *epochs = parts[0][1] + parts[1][1]
    assert init['init_loss'] > 0 and [epoch['_step'] for epoch in (init, *epochs)] == list(range(1, 8))
    history = json.loads((folder / 'history.json').read_text())
    for epoch, entry in zip(epochs, history, strict=True):
        for name in ('epoch', 'train_acc', 'train_loss', 'test_acc', 'test_loss', 'test_acc_top5', 'lr'):
            assert epoch[name] == entry[name]
        assert any(key.endswith('_type') and value == 'image-file' for key, value in epoch.items())


@pytest.mark.slow
def test_one_of_two_processes_reports(small, tmp_path):
    """And both remove the temporary folders that wandb makes when it is imported."""
    pytest.importorskip('wandb')
    (tmp_path / 'temporary').mkdir()
    run = train('train_teacher.py', '--model', 'resnet8', *small, '--save_dir', tmp_path, '--wandb',
                '--multiprocessing-distributed', '--gpu_id', 'cpu,cpu', '--dist-url', f'tcp://127.0.0.1:{free_port()}',
                WANDB_MODE='offline', TMPDIR=str(tmp_path / 'temporary'))
    assert run.communicate()[1] == '' and run.returncode == 0
    assert not [*(tmp_path / 'temporary').glob('tmp*')]
    (description, logged), = map(read, tmp_path.glob('wandb/offline-run-*'))
    assert description.project == 'distillation' and len(logged) == 1


def test_a_new_run_in_an_old_folder_is_another(call, small, tmp_path, monkeypatch):
    """As is one that continues from another folder; a run that goes on is the same."""
    arguments = ['--model', 'resnet8', *small, '--save_dir', tmp_path]

    def run(trial, *more):
        call(train_teacher.main, *arguments, '--trial', trial, *more)
        state = next(tmp_path.glob(f'models/*_trial_{trial}')) / 'last.pth'
        return load_checkpoint(str(state), '')['log']['wandb'], state
    (first, epochs), state = run('a')
    assert epochs == 1
    assert run('a', '--resume', '--epochs', 2)[0] == [first, 2]
    (other, epochs), _ = run('b', '--resume', state, '--epochs', 3)
    assert other != first and epochs == 3
    assert run('a', '--overwrite')[0][0] not in (first, other)


@pytest.mark.parametrize('project, words', [
    ('nets', '--wandb: wandb is not installed; pip install wandb'), ('a/b', '--wandb a/b: no name of a project; give'),
    ('', '--wandb : no name of a project; give'), ('x' * 129, ': no name of a project; give')])
def test_mistakes(call, small, tmp_path, monkeypatch, capfd, project, words):
    """Before anything is written. A folder that wandb has left does not count as the package."""
    monkeypatch.setitem(sys.modules, 'wandb', None if project == 'nets' else package(None))
    with pytest.raises(SystemExit) as caught:
        call(train_teacher.main, *small, '--save_dir', tmp_path, '--wandb', project)
    error = capfd.readouterr().err
    assert caught.value.code == 2 and error.count('\n') == 1 and words in error
    assert list(tmp_path.iterdir()) == []


def test_without_an_account(small, tmp_path):
    pytest.importorskip('wandb')
    environment = {'WANDB_MODE': 'online', 'WANDB_API_KEY': '', 'HOME': str(tmp_path), 'NETRC': str(tmp_path / 'none')}
    run = train('train_teacher.py', '--model', 'resnet8', *small, '--save_dir', tmp_path, '--wandb', **environment)
    out, error = run.communicate()
    assert run.returncode == 2 and error.count('\n') == 1 and error.startswith('error: --wandb: cannot begin (')
    assert error.endswith('); run `wandb login`, or set WANDB_MODE=offline\n') and 'epoch' not in out


def package(run):
    """A package of wandb's name whose init returns `run`."""
    module = types.ModuleType('wandb')
    module.__spec__ = importlib.machinery.ModuleSpec('wandb', None, origin='test')
    module.Settings, module.setup, module.init = dict, (lambda settings: None), (lambda **settings: run)
    return module


def test_a_failure_on_the_way(call, small, tmp_path, monkeypatch, capfd):
    """One line, and the run is whole."""
    class Broken:
        url = 'https://example.org/run'

        def log(self, *arguments, **more):
            raise ConnectionResetError('Connection lost')
        finish = log
    monkeypatch.setitem(sys.modules, 'wandb', package(Broken()))
    call(train_teacher.main, '--model', 'resnet8', *small, '--epochs', 2, '--save_dir', tmp_path, '--wandb')
    out, error = capfd.readouterr()
    assert out.count('--wandb: nothing is reported any more (Connection lost)\n') == 1 and error == ''
    assert 'https://example.org/run' in out and out.count('best top-1') == 1
