"""Interrupted runs: what --resume goes on from, and what it refuses."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import Hostile, assert_same, few, forked, outcome, outcome_of, wait_for_text, write_images

import dataset
import train_student
import train_teacher
from helper.checkpoint import load_checkpoint
from helper.files import FolderLock
from helper.resume import NEWER_PROPERTIES
from helper.run import Run
from helper.state import check_optimizer, load_optimizer

ROOT = Path(__file__).resolve().parents[1]


def student(teacher, small, save, method):
    weights = '0' if method in ('kd', 'ctkd') else ','.join(['0.5'] * len(method.split('+')))
    return ['--path_t', teacher, '--distill', *method.split(), '-b', weights, *few(method, 2), *small, '--epochs', 3,
             '--learning_rate', 0.02, '--save_dir', save]


@pytest.mark.parametrize('method, stops', [
    ('kd', (2, 4)), ('semckd', (1, 5)), ('vid', (3, 2)), ('crd', (2, 2, 4)), ('abound', (6, 1)),
    pytest.param('factor --opt lamb', (2, 5, 3), marks=pytest.mark.skipif(find_spec('timm') is None, reason='timm')),
    ('ctkd', (2, 3)), ('simkd', (4, )), ('wkdl', (1, 4)), ('gkl', (2, 4)), ('rkd+crd --opt dot', (1, 4)),
    ('semckd --compile', (1, 5)), ('abound --compile', (6, 1))])
def test_a_resumed_run_ends_as_an_uninterrupted_one(call, small, teacher, tmp_path, interrupt, method, stops):
    """stops: steps between the interruptions, 3 to an epoch, in the middle and at the end of epochs and stages."""
    call(train_student.main, *student(teacher, small, tmp_path / 'whole', method))
    for steps in stops:
        interrupt(steps)
        with pytest.raises(SystemExit) as caught:
            call(train_student.main, *student(teacher, small, tmp_path / 'parts', method), '--resume', 'auto')
        assert caught.value.code == 128 + signal.SIGTERM
    interrupt(10**9)
    call(train_student.main, *student(teacher, small, tmp_path / 'parts', method), '--resume', 'auto')
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_teacher_and_its_signals(call, small, tmp_path, interrupt, capfd, number):
    arguments = ['--model', 'resnet8', *small, '--epochs', 3, '--save_freq', 2]
    call(train_teacher.main, *arguments, '--save_dir', tmp_path / 'whole')
    interrupt(5, number)
    with pytest.raises(SystemExit) as caught:
        call(train_teacher.main, *arguments, '--save_dir', tmp_path / 'parts')
    assert caught.value.code == 128 + number
    assert f'{number.name}: stopped after step 2 of epoch 2, saved in' in capfd.readouterr().out
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    interrupt(10**9)
    last = next((tmp_path / 'parts').glob('models/*/last.pth'))
    call(train_teacher.main, *arguments, '--save_dir', tmp_path / 'parts', '--resume', last)
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))
    files = [load_checkpoint(str(next((tmp_path / run).glob('models/*/ckpt_epoch_2.pth'))), '')['model']
             for run in ('parts', 'whole')]
    assert_same(*files)


def test_a_signal_before_the_first_step(call, small, teacher, tmp_path, monkeypatch, capfd):
    """While the teacher is measured, and right after: nothing is lost, nothing is said wrongly."""
    arguments = ['--path_t', teacher, *small, '--save_dir', tmp_path]
    original = train_student.validate

    def validate(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)
    monkeypatch.setattr(train_student, 'validate', validate)
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *arguments)
    assert caught.value.code == 143 and not list(tmp_path.glob('*/*/last.pth'))
    monkeypatch.setattr(train_student, 'validate', lambda loader, net, run, *_, **__: validate(loader, net))
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *arguments)
    assert caught.value.code == 143 and 'stopped after epoch 0' in capfd.readouterr().out
    monkeypatch.setattr(train_student, 'validate', original)
    call(train_student.main, *arguments, '--resume')
    call(train_student.main, '--path_t', teacher, *small, '--save_dir', tmp_path / 'whole')
    assert_same(outcome(tmp_path), outcome(tmp_path / 'whole'))


def test_images_in_memory_and_on_disk(call, small, tmp_path, monkeypatch, capfd):
    """The two ways draw other random numbers: a state that followed one is not continued by the other, unless told."""
    arguments = ['--model', 'resnet8', *small, '--save_dir', tmp_path]
    plenty = dataset.parts.free_memory
    for first, free, words in (('disk', plenty, '--images_in disk, now memory'),
                               ('memory', lambda device: 0, '--images_in memory, now disk')):
        folder = ['-t', first, '--resume', 'auto']
        call(train_teacher.main, *arguments, *folder, '--images_in', first)
        monkeypatch.setattr(dataset.parts, 'free_memory', free)
        with pytest.raises(SystemExit) as caught:
            call(train_teacher.main, *arguments, *folder, '--epochs', 2)
        assert caught.value.code == 2 and words in capfd.readouterr().err
        call(train_teacher.main, *arguments, *folder, '--epochs', 2, '--images_in', first)
        call(train_teacher.main, *arguments, '--epochs', 2, '--images_in', first, '-t', f'{first}_whole')
        parts, whole = (next(tmp_path.glob(f'models/*_trial_{trial}')) for trial in (first, f'{first}_whole'))
        assert_same(outcome_of(parts), outcome_of(whole))
    state = load_checkpoint(str(parts / 'last.pth'), '')
    for name in NEWER_PROPERTIES:      # as it was before these were kept
        state['identity'].pop(name, None)
    torch.save(state, parts / 'last.pth')
    call(train_teacher.main, *arguments, *folder, '--epochs', 3)


def test_into_another_folder(call, small, tmp_path, capfd):
    """A run that continues elsewhere takes its state and its best checkpoint along, before anything else is written."""
    arguments = ['--model', 'resnet8', *small, '--save_dir', tmp_path]
    call(train_teacher.main, *arguments, '--epochs', 2, '-t', 'a')
    first = next(tmp_path.glob('models/*_a'))
    state = load_checkpoint(str(first / 'last.pth'), '')
    state['log']['best'] = {**state['log']['best'], 'test_acc': 100.0, 'epoch': 1}
    state['log']['class_report']['epoch'] = 1
    torch.save(state, first / 'last.pth')
    best = load_checkpoint(str(first / 'resnet8_best.pth'), '')
    torch.save({**best, 'epoch': 1, 'best_acc': 100.0}, first / 'resnet8_best.pth')
    (first / 'test_best_metrics.json').unlink()     # the log has them
    call(train_teacher.main, *arguments, '--epochs', 3, '-t', 'b', '--resume', first)
    second = next(tmp_path.glob('models/*_b'))
    assert (second / 'resnet8_best.pth').read_bytes() == (first / 'resnet8_best.pth').read_bytes()
    assert json.loads((second / 'test_best_metrics.json').read_text()) == state['log']['best']
    assert json.loads((second / 'test_best_classes.json').read_text()) == state['log']['class_report']

    # A run that has ended: its state is there too, and continues.
    call(train_teacher.main, *arguments, '--epochs', 2, '-t', 'c', '--resume', first)
    third = next(tmp_path.glob('models/*_c'))
    assert_same(load_checkpoint(str(third / 'last.pth'), '')['module'], state['module'])
    call(train_teacher.main, *arguments, '--epochs', 3, '-t', 'c', '--resume')
    assert_same(outcome_of(third), outcome_of(second))

    # The state alone, without the files of its best epoch: the best is determined again, from the epoch that it ends.
    torch.save(state, tmp_path / 'moved.pth')
    capfd.readouterr()
    call(train_teacher.main, *arguments, '--epochs', 2, '-t', 'd', '--resume', tmp_path / 'moved.pth')
    assert 'does not hold the best checkpoint of epoch 1; the best is determined again' in capfd.readouterr().out
    assert json.loads(next(tmp_path.glob('models/*_d/test_best_metrics.json')).read_text())['epoch'] == 2


@pytest.mark.parametrize('lost', ['test_best_metrics.json', 'resnet8_best.pth', 'both', 'damaged'])
def test_files_of_the_best_epoch_that_are_lost(call, small, tmp_path, capfd, lost):
    """A finished run's figures are what they were; only weights that last.pth does not have stay lost."""
    arguments = ['--model', 'resnet8', *small, '--epochs', 2, '--save_dir', tmp_path]
    call(train_teacher.main, *arguments)
    folder = next(tmp_path.glob('models/*'))
    metrics, weights = folder / 'test_best_metrics.json', folder / 'resnet8_best.pth'
    best = load_checkpoint(str(weights), '')
    state = load_checkpoint(str(folder / 'last.pth'), '')
    state['log']['best'] = {**state['log']['best'], 'test_acc': 100.0, 'epoch': 1}
    state['log']['class_report']['epoch'] = 1
    torch.save(state, folder / 'last.pth')
    torch.save({**best, 'epoch': 1, 'best_acc': 100.0}, weights)
    before = weights.read_bytes()
    for file in (metrics, weights):
        if lost in (file.name, 'both'):
            file.unlink()
        elif lost == 'damaged':
            file.write_bytes(b'{')
    capfd.readouterr()
    for _ in range(2):
        call(train_teacher.main, *arguments, '--resume')
        out = capfd.readouterr().out
        assert json.loads(metrics.read_text()) == state['log']['best'] and 'best top-1 100.00 at epoch 1' in out
        if lost == 'test_best_metrics.json':
            assert weights.read_bytes() == before and 'are lost' not in out
        else:
            assert f'{weights}: the weights of the best epoch, 1, are lost; its figures stay' in out
            assert not weights.exists() or weights.read_bytes() == b'{'


def test_into_the_folder_of_another_run(call, small, tmp_path, capfd, monkeypatch):
    """Interrupted right after its start, that folder holds the state that came, not a mixture of both runs."""
    arguments = ['--model', 'resnet8', *small, '--save_dir', tmp_path]
    for trial, seed in (('a', 1), ('b', 2)):
        call(train_teacher.main, *arguments, '--seed', seed, '--epochs', 2, '-t', trial)
    a, b = (next(tmp_path.glob(f'models/*_{trial}')) for trial in 'ab')

    def killed(*args):
        raise KeyboardInterrupt
    before = (b / 'last.pth').read_bytes()
    with pytest.raises(SystemExit):
        call(train_teacher.main, *arguments, '--epochs', 3, '-t', 'b', '--resume', a)
    assert f'{b} holds another run, with seed 2, now 1; give another --trial, or --over' in capfd.readouterr().err
    assert (b / 'last.pth').read_bytes() == before
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, 'end_step', killed)
        call(train_teacher.main, *arguments, '--epochs', 3, '-t', 'b', '--resume', a, '--overwrite')
    assert_same(*(load_checkpoint(str(folder / 'last.pth'), '')['module'] for folder in (a, b)))
    for trial in 'ba':
        call(train_teacher.main, *arguments, '--epochs', 3, '--resume', '-t', trial)
    assert_same(outcome_of(b), outcome_of(a))


def test_a_signal_while_validating(call, small, tmp_path, monkeypatch, capfd):
    arguments = ['--model', 'resnet8', *small, '--epochs', 2]
    call(train_teacher.main, *arguments, '--save_dir', tmp_path / 'whole')
    original = Run.stop_if_asked

    def stop_if_asked(self):
        os.kill(os.getpid(), signal.SIGTERM)
        original(self)
    monkeypatch.setattr(Run, 'stop_if_asked', stop_if_asked)
    with pytest.raises(SystemExit):
        call(train_teacher.main, *arguments, '--save_dir', tmp_path / 'parts')
    monkeypatch.setattr(Run, 'stop_if_asked', original)
    assert 'stopped after step 3 of epoch 1' in capfd.readouterr().out
    call(train_teacher.main, *arguments, '--save_dir', tmp_path / 'parts', '--resume')
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))


def test_more_epochs(call, small, tmp_path, capfd):
    """A run that has ended goes on when more epochs are asked for, and not for fewer than it has."""
    arguments = ['--model', 'resnet8', *small, '--save_dir', tmp_path / 'parts']
    call(train_teacher.main, *arguments, '--epochs', 1)
    call(train_teacher.main, *arguments, '--epochs', 3, '--resume', 'auto')
    call(train_teacher.main, '--model', 'resnet8', *small, '--epochs', 3, '--save_dir', tmp_path / 'whole')
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))
    before = outcome(tmp_path / 'parts')
    call(train_teacher.main, *arguments, '--epochs', 3, '--resume', 'auto')      # nothing is left to do
    assert_same(outcome(tmp_path / 'parts'), before)
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        call(train_teacher.main, *arguments, '--epochs', 2, '--resume', 'auto')
    assert caught.value.code == 2 and 'has reached epoch 3; give at least 3' in capfd.readouterr().err


def test_the_drawn_seed_is_kept(call, small, tmp_path, interrupt):
    """A run without --seed goes on with the seed that it has drawn."""
    seed = small.index('--seed')
    flags = ['--model', 'resnet8', *small[:seed], *small[seed + 2:], '--epochs', 2, '--save_dir', tmp_path]
    interrupt(4)
    with pytest.raises(SystemExit):
        call(train_teacher.main, *flags)
    first = load_checkpoint(str(next(tmp_path.glob('models/*/last.pth'))), '')['seed']
    call(train_teacher.main, *flags, '--resume')
    parameters = json.loads(next(tmp_path.glob('models/*/parameters.json')).read_text())
    assert parameters['seed'] == first and 'flags' not in parameters


@pytest.fixture(scope='module')
def ended(call, small, teacher, tmp_path_factory):
    """The folder in which a run with semckd has ended."""
    save = tmp_path_factory.mktemp('ended')
    call(train_student.main, *student(teacher, small, save, 'semckd'), '--epochs', 1)
    return next(save.glob('student_model/*'))


DIFFERENT = {       # options -> what is said to differ
    'method': (['--distill', 'vid'], 'distill semckd, now vid'),
    'student': (['--model_s', 'resnet14'], 'model_s resnet8, now resnet14'),
    'weights': (['-b', '3'], 'beta 0.5, now 3.0'),
    'rate': (['--learning_rate', '0.5'], 'learning_rate 0.02, now 0.5'),
    'batch': (['--batch_size', '8'], 'batch_size 16, now 8'),
    'size': (['--image_size', '32'], 'image_size 16, now 32'),
    'seed': (['--seed', '5'], 'seed 1, now 5'),
}


@pytest.mark.parametrize('case', DIFFERENT)
def test_other_options_are_refused(call, small, teacher, tmp_path, ended, capfd, case):
    options, words = DIFFERENT[case]
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *student(teacher, small, tmp_path, 'semckd'), *options, '--resume', ended)
    error = capfd.readouterr().err
    assert caught.value.code == 2 and words in error and error.count('\n') == 1 and list(tmp_path.iterdir()) == []


def test_another_teacher_or_other_data_are_refused(call, small, teacher, tree, tmp_path, ended, capfd):
    state, unnamed = load_checkpoint(str(teacher), ''), tmp_path / 'unnamed.pth'
    del state['classes']
    torch.save(state, unnamed)
    state['model']['fc.bias'] += 1
    torch.save(state, tmp_path / 'other.pth')
    write_images(tmp_path / 'data' / 'train', 13)
    write_images(tmp_path / 'data' / 'test', 2)
    same_labels = shutil.copytree(tree, tmp_path / 'same labels')
    shutil.copy(tree / 'train' / 'dog' / '0.png', same_labels / 'train' / 'ant' / '0.png')
    renamed = shutil.copytree(tree, tmp_path / 'renamed')
    for split in renamed.iterdir():
        (split / 'dog').rename(split / 'doggy')
    for options, words in ((['--path-t', tmp_path / 'other.pth'], 'teacher (checksum)'),
                           (['--data_dir', tmp_path / 'data'], 'training images 48, now 52'),
                           (['--data_dir', same_labels], 'another run, with images (checksum)'),
                           (['--data_dir', renamed, '--path-t', unnamed],
                            'class names ant, bee, cat, dog, now ant, bee, cat, doggy')):
        with pytest.raises(SystemExit):
            call(train_student.main, *student(teacher, small, tmp_path / 'save', 'semckd'), *options, '--resume', ended)
        assert words in capfd.readouterr().err and not (tmp_path / 'save').exists()


def change(**parts):
    def make(path, state):
        for name, value in parts.items():
            state[name] = value(state[name]) if callable(value) else value
        if type(state['epoch']) is int and 'log' not in parts:
            state['log']['history'] = state['log']['history'][:state['epoch'] - 1 if state['stage'] == 'train' else 0]
        torch.save(state, path)
    return make


def cut(path, state):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:20000])


def flipped(path, state):
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def longer_momentum(optimizer):
    optimizer['state'][0]['momentum_buffer'] = torch.zeros(3)
    return optimizer


FOREIGN = {
    'missing': (lambda path, state: None, 'no such file'),
    'cut short': (cut, 'not a PyTorch checkpoint, or cut short'),
    'a flipped bit': (flipped, 'or cut short or damaged'),
    'a teacher': (lambda path, state: torch.save({'model': state['module']}, path), 'is no last.pth of a run'),
    'hostile': (lambda path, state: torch.save({'identity': Hostile('hacked')}, path), 'refused, it holds code'),
    'a list': (lambda path, state: torch.save([1], path), 'holds a list'),
    'no epoch': (change(epoch='x'), '"epoch" is missing or odd'),
    'epoch 0': (change(epoch=0), 'its numbers make no sense'),
    'log': (change(log={'history': 3}), 'its numbers make no sense'),
    'momentum': (change(optimizer=longer_momentum, epoch=1), 'momentum_buffer of parameter 0'),
    'random': (change(random=lambda r: [{**r[0], 'torch': torch.zeros(3)}], epoch=1), 'not the state of this run'),
    'odd meter': (change(own=[{'meter': {'names': ['loss'], 'sums': torch.zeros(9), 'samples': 3}, 'buffers': {}}],
                         step=1, epoch=1), 'not the state of this run (meter)'),
    'too many steps': (change(own=[{'meter': {'names': [], 'sums': torch.zeros(0), 'samples': 0}, 'buffers': {}}],
                              step=10**9), 'its numbers make no sense for this run'),
    'NaN weights': (change(module=lambda m: {**m, 'student.fc.bias': torch.full((4,), torch.nan)}),
                    'student.fc.bias is not finite'),
    'loader': (change(loader=torch.zeros(3, dtype=torch.uint8)), 'not the state of this run'),
    'scaler': (change(scaler={'scale': 'x'}), 'not the state of this run (scaler)'),
    'first stage': (change(stage='init'), 'its numbers make no sense for this run'),
    'infinite momentum': (change(epoch=1, optimizer={'state': {0: {
        'momentum_buffer': torch.full((16, 3, 3, 3), 1e999)}}}), 'momentum_buffer of parameter 0'),
    'history': (change(log=lambda log: {**log, 'history': [{'epoch': torch.zeros(1)}]}), 'its numbers make no sense'),
    'figures of classes': (change(log=lambda log: {**log, 'class_report': [1]}), 'its numbers make no sense'),
    'id of wandb': (change(log=lambda log: {**log, 'wandb': ['../x', 1]}), 'its numbers make no sense'),
    'identity': (change(identity=lambda i: {**i, 'distill': torch.zeros(3)}), 'another run, with distill'),
    'a tensor for a number': (change(identity=lambda i: {**i, 'image_size': torch.zeros(3)}), 'not the state of this'),
    'sparse': (change(module=lambda m: {**m, 'student.fc.bias': torch.zeros(4).to_sparse()}), 'torch.sparse_coo'),
    'weights': (change(module=lambda m: {**m, 'student.fc.bias': torch.zeros(7)}), 'student.fc.bias is (7,)'),
    'weights of another version': (change(module=lambda m: {**m, 'student.fc.bias': torch.zeros(7)},
                                          optimizer=longer_momentum), 'student.fc.bias is (7,)'),
    'no history': (change(log=lambda log: {**log, 'history': []}), 'its numbers make no sense'),
    'no random numbers': (change(random=[]), 'its numbers make no sense'),
    'no loader': (change(loader=None), 'its numbers make no sense for this run'),
    'no momentum': (change(optimizer=lambda o: {**o, 'state': {}}), 'momentum_buffer of parameter 0 is missing'),
    'one momentum gone': (change(optimizer=lambda o: {**o, 'state': {k: v for k, v in o['state'].items() if k != 3}}),
                          'momentum_buffer of parameter 3 is missing'),
    'a boolean epoch': (change(epoch=True), '"epoch" is missing or odd'),
}


@pytest.mark.parametrize('case', FOREIGN)
def test_foreign_files_are_refused(call, small, teacher, tmp_path, ended, capfd, case):
    make, words = FOREIGN[case]
    path = tmp_path / 'last.pth'
    make(path, load_checkpoint(str(ended / 'last.pth'), ''))
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *student(teacher, small, tmp_path / 'save', 'semckd'), '--resume', path)
    error = capfd.readouterr().err
    assert caught.value.code == 2 and '--resume' in error and words in error and error.count('\n') == 1
    assert not (tmp_path / 'hacked').exists() and not Path('hacked').exists()


@pytest.mark.parametrize('case', ['NaN weights', 'momentum', 'random', 'weights'])
def test_a_damaged_state_changes_no_file(call, small, teacher, tmp_path, capfd, case):
    """In the run's own folder: all is checked before anything is written; previous.pth is taken where it is whole."""
    arguments = [*student(teacher, small, tmp_path, 'kd'), '--resume']
    call(train_student.main, *arguments, '--epochs', 2)
    folder = next(tmp_path.glob('student_model/*'))
    make, words = FOREIGN[case]
    make(folder / 'last.pth', load_checkpoint(str(folder / 'last.pth'), ''))
    whole = (folder / 'previous.pth').read_bytes()
    (folder / 'previous.pth').unlink()
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *arguments)
    assert caught.value.code == 2 and words in capfd.readouterr().err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    if case in ('NaN weights', 'random'):       # what the file itself shows to be wrong, whatever the run
        (folder / 'previous.pth').write_bytes(whole)
        call(train_student.main, *arguments)
        assert 'resuming from previous.pth' in capfd.readouterr().out


def test_a_rerun_replaces_all_of_an_earlier_run(call, small, tmp_path, capfd):
    """With --overwrite alone, and after its first epoch: other checkpoints, TensorBoard's curves. A run that goes on
    elsewhere does so too."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    arguments = ['--model', 'resnet8', *small, '--save_dir', tmp_path]
    call(train_teacher.main, *arguments, '--epochs', 3, '--save_freq', 1)
    folder = next(tmp_path.glob('models/*'))
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    same = 'holds this run already; --resume auto continues it, another --trial repeats it beside it, --overwrite'
    for more, words in (
            (['--momentum', 0.8], 'holds another run, with momentum 0.9, now 0.8; give another --trial, or --ov'),
            (['--momentum', 0.8, '--resume'], 'another run, with momentum 0.9, now 0.8; give what it was started with, '
                                              'or another --trial, for a run beside it'),
            (['--seed', 2], 'holds another run, with seed 1, now 2; give'), ([], same), (['--epochs', 5], same),
            (['--momentum', 1e30, '--overwrite'], 'the loss diverged in epoch 1')):
        with pytest.raises(SystemExit) as caught:
            call(train_teacher.main, *arguments, *more)
        error = capfd.readouterr().err
        assert caught.value.code == 2 and words in error and error.count('\n') == 1
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    call(train_teacher.main, *arguments, '--epochs', 2, '--save_freq', 2, '--resume', '--momentum', 0.8, '--overwrite')
    assert f'{folder} holds another run, with momentum 0.9, now 0.8; --overwrite: this' in capfd.readouterr().out
    assert [p.name for p in folder.glob('ckpt_epoch_*.pth')] == ['ckpt_epoch_2.pth']
    events = EventAccumulator(str(tmp_path / 'tensorboard' / folder.name))
    events.Reload()
    assert [e.step for e in events.Scalars('test_acc')] == [1, 2]
    call(train_teacher.main, *arguments, '--epochs', 3, '--save_freq', 1, '-t', 'b')
    call(train_teacher.main, *arguments, '--momentum', 0.8, '--epochs', 3, '--save_freq', 2, '-t', 'b', '--resume',
         folder, '--overwrite')
    assert [p.name for p in tmp_path.glob('models/*_b/ckpt_epoch_*.pth')] == ['ckpt_epoch_2.pth']


def test_what_is_no_run_yet_and_what_has_lost_its_state(call, small, tmp_path, capfd):
    """A run that was stopped in its first epoch can be replaced; one without its last.pth cannot."""
    arguments = ['--model', 'resnet8', *small, '--save_dir', tmp_path]
    call(train_teacher.main, *arguments)
    folder = next(tmp_path.glob('models/*'))
    (folder / 'last.pth').unlink()
    (folder / 'previous.pth').unlink(missing_ok=True)
    gone = 'holds this run, but not its last.pth; give another --trial, or --overwrite to train it again'
    for more, words in (([], gone), (['--resume'], gone), (['--momentum', 0], 'with momentum 0.9, now 0.0; give')):
        with pytest.raises(SystemExit):
            call(train_teacher.main, *arguments, *more)
        assert words in capfd.readouterr().err
    for file in folder.glob('*.*'):
        file.unlink()
    call(train_teacher.main, *arguments)
    state = load_checkpoint(str(folder / 'last.pth'), '')
    for file in folder.glob('*.*'):
        file.unlink()
    torch.save({**state, 'epoch': 1, 'step': 2}, folder / 'last.pth')
    call(train_teacher.main, *arguments, '--momentum', 0.5)
    assert 'holds a run that was stopped in its first epoch; this one replaces it' in capfd.readouterr().out


def test_an_epoch_that_is_trained_again_is_shown_once(call, small, tmp_path, monkeypatch):
    """Killed after TensorBoard has an epoch and before last.pth does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    arguments = ['--model', 'resnet8', *small, '--save_dir', tmp_path, '--epochs', 3]
    original = Run.end_epoch

    def killed(self):
        if self.epoch == 2:
            raise KeyboardInterrupt
        original(self)
    with monkeypatch.context() as patch:
        patch.setattr(Run, 'end_epoch', killed)
        with pytest.raises(SystemExit):
            call(train_teacher.main, *arguments)
    call(train_teacher.main, *arguments, '--resume')
    events = EventAccumulator(str(next(tmp_path.glob('tensorboard/*'))))
    events.Reload()
    assert [e.step for e in events.Scalars('test_acc')] == [1, 2, 3]


@pytest.mark.parametrize('main', [train_teacher.main, train_student.main], ids=['teacher', 'student'])
def test_a_killed_run_s_files_are_written_when_it_goes_on(call, small, teacher, tmp_path, monkeypatch, main):
    """Killed right after last.pth, at the end of an epoch that is the best and due for ckpt_epoch_N.pth."""
    from helper.records import Records
    arguments = ['--save_freq', 1, '--model', 'resnet8'] if main == train_teacher.main else ['--path-t', teacher]
    arguments += [*small, '--save_dir', tmp_path, '--epochs', 1]

    def killed(*args):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(Records, 'write', killed)
        with pytest.raises(SystemExit):
            call(main, *arguments)
    folder = next(tmp_path.glob('*/*/last.pth')).parent
    assert sorted(p.name for p in folder.iterdir()) == ['.lock', 'last.pth']
    call(main, *arguments, '--resume')
    assert {'resnet8_best.pth', 'test_best_metrics.json', 'history.json', 'parameters.json'} <= {
        p.name for p in folder.iterdir()}
    if main == train_teacher.main:
        assert load_checkpoint(str(folder / 'ckpt_epoch_1.pth'), '')['epoch'] == 1


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('change, words', [
    (lambda kept: kept.pop('exp_avg_sq'), 'exp_avg_sq'),
    (lambda kept: kept.update(exp_avg=torch.zeros(1, 1)), r'exp_avg of parameter 0 is torch.float32 \(1, 1\)'),
    (lambda kept: kept.update(step=torch.tensor(float('nan'))), 'step of parameter 0')])
def test_a_damaged_state_of_another_optimizer(fused, change, words):
    """Found before it is used, whichever optimiser it is; what is whole is loaded."""
    net = torch.nn.Linear(3, 2)
    before = net.weight.clone()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=fused)
    for _ in range(2):
        net(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    saved, weight = optimizer.state_dict(), net.weight.clone()
    other = torch.optim.AdamW(net.parameters(), lr=0.1, fused=fused)
    check_optimizer(other, saved)
    assert_same(other.state_dict()['state'], saved['state'])
    assert torch.equal(net.weight, weight) and not torch.equal(weight, before)     # tried on copies
    change(saved['state'][0])
    with pytest.raises((ValueError, KeyError, TypeError), match=words):
        check_optimizer(torch.optim.AdamW(net.parameters(), lr=0.1, fused=fused), saved)


@pytest.mark.parametrize('step, words', [(None, 'step of a group'), (-3, 'step of a group'), ('2', 'step of a group')])
def test_a_damaged_count_of_steps(step, words):
    """Of an optimiser that counts in its groups."""
    optim = pytest.importorskip('timm.optim')
    net = torch.nn.Linear(3, 2)
    saved, groups = _stepped(optim.Lamb(net.parameters()), 3).state_dict(), []
    assert [group['step'] for group in saved['param_groups']] == [3]
    other = optim.Lamb(net.parameters(), lr=0.5)
    load_optimizer(other, saved)
    assert (other.param_groups[0]['step'], other.param_groups[0]['lr']) == (3, 0.5)
    for group in saved['param_groups']:
        groups.append({name: value for name, value in {**group, 'step': step}.items() if value is not None})
    with pytest.raises(ValueError, match=words):
        check_optimizer(optim.Lamb(net.parameters()), {**saved, 'param_groups': groups})


def _stepped(optimizer, steps):
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group['params']:
                p.grad = torch.ones_like(p)
        optimizer.step()
    return optimizer


def test_a_lock_keeps_a_second_run_out(call, small, teacher, tmp_path, capfd):
    """While another process holds it; a process that was killed leaves none behind."""
    arguments = [*student(teacher, small, tmp_path, 'kd'), '--epochs', 1]
    call(train_student.main, *arguments)
    folder = next(tmp_path.glob('student_model/*'))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    program = ('import sys, pathlib; from helper.files import FolderLock\n'
               'lock = FolderLock(pathlib.Path(sys.argv[1])); lock.take(); print("held", flush=True); sys.stdin.read()')
    other = subprocess.Popen([sys.executable, '-c', program, folder], cwd=ROOT, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == 'held\n'
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *arguments)
    assert caught.value.code == 2 and 'another run is writing there' in capfd.readouterr().err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    out = tmp_path / 'out'
    later = forked(train_student.main, *arguments, '--resume', out=out)
    wait_for_text(out, 'waiting for it to end', later)
    assert 'resuming from' not in out.read_text()
    other.kill()
    other.communicate()
    later.join()
    assert later.exitcode == 0 and 'resuming from' in out.read_text()
    lock = FolderLock(folder)
    assert lock.take()
    lock.release()


@pytest.mark.parametrize('shared, left', [(False, []), (True, ['.report.html.a.tmp'])])
def test_what_is_unfinished_when_a_folder_is_taken(tmp_path, shared, left):
    """It is of a run that was killed; in a folder where others write too, once it is old."""
    for name, age in (('.report.html.a.tmp', 5), ('.report.html.b.tmp', 5000)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    lock = FolderLock(tmp_path, shared=shared)
    assert lock.take()
    lock.release()
    assert [file.name for file in tmp_path.glob('.*.tmp')] == left


def test_save_every(call, small, tmp_path, monkeypatch):
    """Within an epoch too, when so many minutes are over."""
    seen = []
    original = Run.save
    monkeypatch.setattr(Run, 'save', lambda self, epoch, step: (seen.append((epoch, step)),
                                                                   original(self, epoch, step)))
    call(train_teacher.main, '--model', 'resnet8', *small, '--save_dir', tmp_path, '--save_every', 1e-9)
    assert seen == [(1, 1), (1, 2), (1, 3), (2, 0)]
