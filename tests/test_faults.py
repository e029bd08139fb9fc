"""What happens to a run when its process is killed, its disk is full, or its files are damaged."""
import contextlib
import errno
import json
import multiprocessing
import os
import random
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import assert_same, outcome

import train_student
import train_teacher
from dataset.teacher_cache.file import CacheFile
from distiller_zoo import distiller_dict, task
from helper import files, resume
from helper.checkpoint import load_checkpoint
from helper.errors import UserError
from helper.loops import update_weights
from helper.run import Run
from scripts import make_shards

MOMENTS = ('start', 'step', 'write', 'link', 'rename', 'renamed')


def kill_at(moment, count):
    """Make this process kill itself when it comes to such a moment for the count-th time."""
    left = [count]

    def die_before(owner, name, applies=lambda *args: True):
        original = getattr(owner, name)

        def patched(*args, **kwargs):
            if applies(*args):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)
        setattr(owner, name, patched)

    def half_written(handle):
        status = os.fstat(handle)
        if left[0] == 1 and stat.S_ISREG(status.st_mode):
            os.ftruncate(handle, status.st_size // 2)
        return stat.S_ISREG(status.st_mode)
    {'start': lambda: die_before(resume, '_read'),
     'step': lambda: die_before(Run, 'end_step'),
     'write': lambda: die_before(os, 'fsync', half_written),
     'link': lambda: die_before(os, 'link'),
     'rename': lambda: die_before(os, 'replace'),
     'renamed': lambda: die_before(os, 'fsync', lambda handle: stat.S_ISDIR(os.fstat(handle).st_mode)),
     'output': lambda: die_before(CacheFile, '_write', lambda file, offset, content: len(content) == 4)}[moment]()


def run(arguments, out, moment, count):
    """A run in a process of its own, which kills itself."""
    sys.stdout = sys.stderr = open(out, 'a')        # noqa: SIM115, until the process ends
    sys.argv = ['train_student.py', *map(str, arguments)]
    kill_at(moment, count)
    train_student.main()


@pytest.mark.parametrize('times', [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_again_and_again(call, small, teacher, tmp_path, times):
    """SIGKILL at drawn moments, while starting, training and writing; every time it goes on, and ends the same."""
    context = multiprocessing.get_context('fork')
    arguments = ['--path_t', teacher, '--distill', 'crd', '--nce_k', 10, *small, '--epochs', 8, '--learning_rate', 0.02,
                 '--save_every', 1e-9]
    call(train_student.main, *arguments, '--save_dir', tmp_path / 'whole')
    save, out = tmp_path / 'parts', tmp_path / 'out.txt'
    arguments += ['--save_dir', save, '--resume', 'auto']
    drawn = random.Random(7)
    rounds = [(moment, 1 if moment == 'start' else drawn.randint(1, 4)) for moment in times * MOMENTS]
    drawn.shuffle(rounds)
    for moment, count in rounds:
        process = context.Process(target=run, args=(arguments, out, moment, count))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f'not killed at {moment} {count}:\n{out.read_text()[-3000:]}'
        for file in save.glob('student_model/*/*.pth'):         # whole, at any moment
            load_checkpoint(str(file), '')
        for file in save.glob('student_model/*/*.json'):
            json.loads(file.read_text())
    call(train_student.main, *arguments)
    assert_same(outcome(save), outcome(tmp_path / 'whole'))
    assert not list(save.glob('student_model/*/*.tmp')) and not list(save.glob('student_model/*/.*.tmp'))


def test_killed_with_shards_and_stored_outputs(call, small, teacher, tree, tmp_path):
    """SIGKILL while the outputs of a batch are stored, and in a later epoch; two workers read shards from disk."""
    call(make_shards.main, '--data_dir', tree, '--out', tmp_path / 'shards', '--shard_size', 4)
    arguments = ['--path_t', teacher, *small, '--dataset', f'wds:{tmp_path / "shards"}', '--images_in', 'disk',
                 '--crop', 'resized', '--cache_epochs', 2, '--epochs', 3, '--learning_rate', 0.02, '--save_every', 1e-9]
    call(train_student.main, *arguments, '--teacher_cache', tmp_path / 'one', '--save_dir', tmp_path / 'whole')
    out = tmp_path / 'out.txt'
    arguments += ['--teacher_cache', tmp_path / 'two', '--save_dir', tmp_path / 'parts', '--resume', 'auto']
    for moment, count in (('output', 22), ('output', 20), ('step', 5)):
        process = multiprocessing.get_context('fork').Process(target=run, args=(arguments, out, moment, count))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, out.read_text()[-3000:]
    call(train_student.main, *arguments)
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))
    assert len([*(tmp_path / 'two').glob('*.cache')]) == 2


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of so many bytes; skips the test where this may not be mounted."""
    folder.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder], capture_output=True) \
        if sys.platform == 'linux' else None
    if done is None or done.returncode:
        pytest.skip('a small file system cannot be mounted here')
    try:
        yield
    finally:
        subprocess.run(['umount', folder], check=True)


def test_a_full_disk(call, small, tmp_path, capfd):
    """The run ends in one line with the checkpoint before it whole, and goes on when there is room."""
    arguments = ['--model', 'resnet8', *small, '--epochs', 3]
    call(train_teacher.main, *arguments, '--save_dir', tmp_path / 'whole')
    with small_disk(tmp_path / 'disk', 4 << 20):
        arguments += ['--save_dir', tmp_path / 'disk' / 'save']
        call(train_teacher.main, *arguments, '--epochs', 1)
        rest = tmp_path / 'disk' / 'rest'
        with contextlib.suppress(OSError), rest.open('wb', buffering=0) as file:
            while True:
                file.write(bytes(100_000))
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            call(train_teacher.main, *arguments, '--resume')
        error = capfd.readouterr().err
        assert caught.value.code == 2 and 'cannot be written' in error and error.count('\n') == 1, error
        last = next((tmp_path / 'disk').glob('save/models/*/last.pth'))
        assert load_checkpoint(str(last), '')['epoch'] == 2
        rest.unlink()
        call(train_teacher.main, *arguments, '--resume')
        assert_same(outcome(tmp_path / 'disk' / 'save'), outcome(tmp_path / 'whole'))


@pytest.mark.parametrize('where', ['write', 'rename'])
def test_no_space_left(call, small, tmp_path, capfd, monkeypatch, where):
    """As above, where the error comes in the middle of last.pth."""
    arguments = ['--model', 'resnet8', *small, '--save_dir', tmp_path]
    call(train_teacher.main, *arguments, '--epochs', 1)
    before = {p.name: p.read_bytes() for p in next(tmp_path.glob('models/*')).iterdir()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync' if where == 'write' else 'replace', full)
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        call(train_teacher.main, *arguments, '--epochs', 2, '--resume')
    error = capfd.readouterr().err
    assert caught.value.code == 2 and 'No space left on device' in error and error.count('\n') == 1
    assert {p.name: p.read_bytes() for p in next(tmp_path.glob('models/*')).iterdir()} == before
    monkeypatch.undo()
    call(train_teacher.main, *arguments, '--epochs', 2, '--resume')


@pytest.mark.parametrize('damage', ['flipped', 'cut', 'empty', 'gone'])
def test_a_damaged_last_falls_back(call, small, tmp_path, capfd, damage):
    """To the state before it, saying so, and the run still ends as it would have."""
    arguments = ['--model', 'resnet8', *small, '--epochs', 4]
    call(train_teacher.main, *arguments, '--save_dir', tmp_path / 'whole')
    save = tmp_path / 'parts'
    call(train_teacher.main, *arguments[:-1], 3, '--save_dir', save)
    last = next(save.glob('models/*/last.pth'))
    content = bytearray(last.read_bytes())
    if damage == 'flipped':         # within the largest tensor; a bit of the space between two means nothing
        with zipfile.ZipFile(last) as parts:
            largest = max(parts.infolist(), key=lambda part: part.file_size)
        content[largest.header_offset + largest.file_size // 2] ^= 4
    last.write_bytes({'flipped': content, 'cut': content[:9999], 'empty': b'', 'gone': b''}[damage])
    if damage == 'gone':
        last.unlink()
    capfd.readouterr()
    call(train_teacher.main, *arguments, '--save_dir', save, '--resume')
    out = capfd.readouterr().out
    assert 'resuming from previous.pth' in out and 'after epoch 2' in out and 'epoch 3: ' in out
    assert_same(outcome(save), outcome(tmp_path / 'whole'))
    for name in ('last.pth', 'previous.pth'):
        (last.parent / name).write_bytes(b'')
    with pytest.raises(SystemExit):
        call(train_teacher.main, *arguments, '--save_dir', save, '--resume')
    assert 'previous.pth: not a PyTorch checkpoint' in capfd.readouterr().err


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(call, small, teacher, tmp_path, capfd, monkeypatch):
    arguments = ['--path_t', teacher, '--distill', 'kd', *small, '--save_dir', tmp_path]
    call(train_student.main, *arguments, '--epochs', 1)
    folder = next(tmp_path.glob('student_model/*'))
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != 'parameters.json'}     # --epochs is another
    original, calls = distiller_dict['kd'].forward, []

    def forward(self, images, target, index=None):
        losses, logits = original(self, images, target, index)
        calls.append(1)
        return {**losses, 'loss': losses['loss'] * (float('inf') if len(calls) == 2 else 1)}, logits
    monkeypatch.setattr(distiller_dict['kd'], 'forward', forward)
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *arguments, '--epochs', 2, '--resume')
    error = capfd.readouterr().err
    assert caught.value.code == 2 and len(calls) == 2
    assert 'diverged in epoch 2, at step 2 (loss inf, ce ' in error and 'learning rate 0.05' in error
    assert before.items() <= {p.name: p.read_bytes() for p in folder.iterdir()}.items()
    # The same in the validation, whose net may give NaN although the training's loss is finite.
    validate, to_nan = task.validate, torch.nn.Hardtanh(float('nan'), float('nan'))
    monkeypatch.setattr(task, 'validate', lambda loader, net, run, **split: validate(
        loader, torch.nn.Sequential(net, to_nan), run, **split))
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *arguments, '--epochs', 2, '--resume')
    error = capfd.readouterr().err
    assert caught.value.code == 2 and 'diverged in epoch 2: the loss on the test images is nan; lower --learn' in error
    assert f'the last good state is in {folder}' in error
    assert before.items() <= {p.name: p.read_bytes() for p in folder.iterdir()}.items()


def test_weights_that_are_not_finite_are_not_saved(call, small, tmp_path, capfd):
    """One step, whose loss is finite and whose update ruins the weights."""
    with pytest.raises(SystemExit) as caught:
        call(train_teacher.main, '--model', 'resnet8', *small, '--save_dir', tmp_path, '--batch_size', 48,
             '--learning_rate', 1e39)
    assert caught.value.code == 2 and 'the weights are no longer finite in epoch 1' in capfd.readouterr().err
    assert not list(tmp_path.glob('models/*/*.pth'))


def test_another_run_s_previous_is_not_taken(call, small, tmp_path, capfd):
    """The state before the first of a run is none, whatever an earlier run has left."""
    arguments = ['--model', 'resnet8', *small, '--save_dir', tmp_path]
    call(train_teacher.main, *arguments, '--epochs', 3)
    call(train_teacher.main, *arguments, '--epochs', 1, '--overwrite')
    folder = next(tmp_path.glob('models/*'))
    assert (folder / 'last.pth').exists() and not (folder / 'previous.pth').exists()


def test_a_compressed_checkpoint_is_refused(tmp_path):
    """A few bytes could fill the memory."""
    import zipfile
    torch.save({'model': {}}, tmp_path / 'x.pth')
    with zipfile.ZipFile(tmp_path / 'x.pth') as source, \
            zipfile.ZipFile(tmp_path / 'y.pth', 'w', zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(UserError, match='not a PyTorch checkpoint'):
        load_checkpoint(str(tmp_path / 'y.pth'), '--path-t')


def test_a_skipped_step_is_no_divergence():
    """float16: a step whose gradients overflow is left out and the scale halved; at no scale finite is divergence."""
    from helper.device import Precision
    precision = Precision('float16', torch.device('cpu'))
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scale = precision.scaler.get_scale()
    def update(loss):
        optimizer.zero_grad()
        precision.scaler.scale(loss).backward()
        update_weights(optimizer, precision.scaler)

    update((weight * 1e38).sum() * 1e-30 * 1e30)       # finite, but not when it is scaled
    assert weight.item() == 1.0 and precision.scaler.get_scale() == scale / 2
    precision.check()
    update(weight.sum())
    assert weight.item() == pytest.approx(0.9)
    for _ in range(40):
        update((weight * float('nan')).sum())
    with pytest.raises(UserError, match='--amp float16: the gradients are not finite at any scale'):
        precision.check()


def test_amp_trains(call, small, teacher, tmp_path, capfd):
    """float16 with its scaler, as on a GPU without bfloat16; the scale goes into last.pth."""
    call(train_student.main, '--path_t', teacher, '--distill', 'semckd', '-b', 1, *small, '--save_dir', tmp_path,
         '--amp', 'bfloat16')
    call(train_student.main, '--path_t', teacher, '--distill', 'kd', *small, '--save_dir', tmp_path, '--amp', 'float16')
    last = load_checkpoint(str(next(tmp_path.glob('student_model/*_kd_*/last.pth'))), '')
    assert last['scaler']['scale'] > 0 and last['module']['student.fc.weight'].dtype == torch.float32
    capfd.readouterr()
    call(train_student.main, '--path_t', teacher, '--distill', 'kd', *small, '--save_dir', tmp_path / 'auto', '--amp')
    assert 'computing in float32' in capfd.readouterr().out


def test_a_write_in_a_folder_that_is_gone(tmp_path):
    with pytest.raises(UserError, match='cannot be written'):
        files.write_json(Path(tmp_path / 'no' / 'file.json'), {})
