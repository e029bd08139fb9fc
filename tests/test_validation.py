"""A validation set: which images it holds, what is chosen on it, and how often the test set is measured."""
import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU, assert_same, data_options, outcome_of, write_images

import dataset
import train_student
import train_teacher
from analysis.run_checkpoint import RunCheckpoint
from analysis.runs import group_trials, read_run
from dataset import folder2lmdb
from dataset.lmdb_source import open_lmdb_sources
from dataset.source import Source
from dataset.split import hold_out
from distiller_zoo import task
from experiments.progress import load_result
from helper.errors import UserError
from helper.records import Records, is_out_of_patience
from option_checkpoints import warn_of_val_fraction
from scripts import compare

LABELS = torch.tensor([0] * 100 + [1] * 10 + [2] * 3)
NAMES = [f'{label}/{i}.png' for i, label in enumerate(LABELS.tolist())]
HELD_OUT = ['--val_fraction', 0.25]     # 3 of 12 images of each class


def test_the_division():
    """At least one image of each class is in either part; a smaller part is within a larger one."""
    counts = {0.1: [10, 1, 1], 0.5: [50, 5, 2], 0.9: [90, 9, 2]}
    before = set()
    for fraction, expected in counts.items():
        parts = hold_out(LABELS, NAMES, fraction, 'abc')
        assert torch.bincount(LABELS[parts['val']]).tolist() == expected
        assert sorted(parts['train'] + parts['val']) == [*range(113)] and before < {*parts['val']}
        before = {*parts['val']}


@pytest.mark.parametrize('labels, fraction, words', [
    (LABELS, 0.999, 'leaves 0 of 113 images for training, fewer than the 3 classes; give a fraction from 0.027 to '
                    '0.97'),
    (LABELS, 0.001, 'leaves 0 of 113 images for validation, fewer than the 3 classes; give'),
    (LABELS, 1.0, 'leaves 0 of 113 images for training'),
    (torch.tensor([0, 0, 2, 1, 1]), 0.5, 'the class c has one training image, which cannot be divided; add images')])
def test_what_cannot_be_divided(labels, fraction, words):
    with pytest.raises(UserError, match=f'--val_fraction {fraction:g}: {words}'):
        hold_out(labels, NAMES[:len(labels)], fraction, 'abc')


@pytest.mark.parametrize('images_in', ['memory', 'disk'])
def test_the_held_out_images(tree, images_in):
    """Stratified, the same for every seed and --train_fraction, not augmented, and not among the training images."""
    def load(**changes):
        return dataset.get_dataloaders(data_options(**{
            'data_dir': str(tree), 'images_in': images_in, 'val_fraction': 0.25, 'num_workers': 0, **changes}), CPU)

    data, other, part = load(), load(seed=5), load(train_fraction=0.5)
    assert data.sizes == '36 training images, 12 validation images, 24 test images in test'
    assert torch.bincount(data.val_labels).tolist() == [3] * 4 and data.selection_loader is data.val_loader
    assert data.split == other.split == part.split
    assert [len(data.split[name]) for name in ('train', 'val', 'test')] == [36, 12, 24]
    assert not {*data.split['train']} & {*data.split['val']} and part.n_train == 16
    images = torch.cat([batch[0] for batch in data.val_loader])
    for loader in (other.val_loader, part.val_loader, data.val_loader):
        assert torch.cat([batch[0] for batch in loader]).equal(images)
    whole = load(val_fraction=None)
    assert whole.checksum == data.checksum and whole.selection_split == 'test' and whole.val_loader is None
    every = torch.cat([batch[0] for batch in whole.unaugmented_loader()])
    assert all((every == image).all((1, 2, 3)).sum() == 1 for image in images)


def test_no_test_reads_no_test_image(tmp_path, monkeypatch):
    for name in ('train', 'test'):
        write_images(tmp_path / name, 4)
    read = []
    monkeypatch.setattr('dataset.folder.Split.read', lambda split, i: read.append(split.name) or Source.read(split, i))
    for no_test in (False, True):
        opt = data_options(data_dir=str(tmp_path), batch_size=4, val_fraction=0.5, no_test=no_test)
        data = dataset.get_dataloaders(opt, CPU)
        assert set(read) == ({'train'} if no_test else {'train', 'test'}) and len(data.test_labels) == 16
        read.clear()


@pytest.mark.parametrize('folders, changes, words', [
    (('train', 'val', 'test'), {'val_fraction': 0.5},
     '--val_fraction 0.5: val beside train and test has validation images already; leave it out'),
    (('train', 'val'), {'no_test': True},
     '--no_test: needs a validation set, and folder has none; give --val_fraction'),
    (('train', 'val'), {'patience': 3},
     '--patience 3: needs a validation set, and folder has none; give --val_fraction'),
    (('images',), {'val_fraction': 0.2, 'split': [0.6, 0.2, 0.2]},
     '--val_fraction 0.2: --split 0.6,0.2,0.2 holds out validation images already; leave it out'),
    (('images',), {'split': [0.5, 0.25, 0.25]}, '--split 0.5,0.25,0.25: leaves no validation image; give two shares')])
def test_sets_that_do_not_go_together(tmp_path, folders, changes, words):
    for name in folders:
        write_images(tmp_path / name, 2)
    root = tmp_path / 'images' if folders == ('images',) else tmp_path
    opt = data_options(data_dir=str(root), batch_size=4, **changes)
    with pytest.raises(UserError, match=words):
        dataset.get_dataloaders(opt, CPU)


def test_a_folder_for_validation(tmp_path, call):
    """`val` beside `train` and `test` is the validation set; beside `train` alone it stays the test set."""
    for name, images in (('train', 4), ('val', 2)):
        write_images(tmp_path / name, images)
    opt = data_options(data_dir=str(tmp_path), batch_size=4)
    data = dataset.get_dataloaders(opt, CPU)
    assert data.sizes == '16 training images, 8 test images in val' and 'chosen on the test set' in data.selection_note
    write_images(tmp_path / 'test', 1)
    data = dataset.get_dataloaders(opt, CPU)
    assert data.sizes == '16 training images, 8 validation images, 4 test images in test'
    assert 'chosen on the validation set' in data.selection_note
    pytest.importorskip('lmdb')
    call(folder2lmdb.main, tmp_path, tmp_path / 'imagenet')
    sources, _ = open_lmdb_sources(tmp_path / 'imagenet')
    assert {part: (source.name, len(source.labels)) for part, source in sources.items()} == \
        {'train': ('train', 16), 'test': ('test', 4), 'val': ('val', 8)}


@pytest.fixture
def test_passes(monkeypatch):
    """A list that gets an entry for each pass over a test set; `stop` in it: a signal in the next pass."""
    passes, original = [], dataset.get_dataloaders

    class Counted:
        def __init__(self, loader):
            self.loader = loader

        def __len__(self):
            return len(self.loader)

        def __getattr__(self, name):
            return getattr(self.loader, name)

        def __iter__(self):
            if 'stop' in passes:
                passes.remove('stop')
                os.kill(os.getpid(), signal.SIGTERM)
            passes.append(len(self.loader.target))
            return iter(self.loader)

    def get_dataloaders(*arguments, **settings):
        data = original(*arguments, **settings)
        data.test_loader = Counted(data.test_loader)
        return data
    for script in (train_teacher, train_student):
        monkeypatch.setattr(script, 'get_dataloaders', get_dataloaders)
    return passes


def interrupted(call, main, *arguments):
    with pytest.raises(SystemExit) as caught:
        call(main, *arguments)
    assert caught.value.code == 128 + signal.SIGTERM


def read(folder, name):
    return json.loads((folder / f'{name}.json').read_text())


@pytest.mark.parametrize('main', [train_teacher.main, train_student.main])
def test_the_test_set_is_measured_once(call, small, teacher, tmp_path, monkeypatch, test_passes, capfd, main):
    """For the best and the last weights, at the end; after an interruption too, which changes no bit."""
    nets = ['--model', 'resnet8', '--model_ema', 0.5] if main is train_teacher.main else \
        ['--path-t', teacher, '--distill', 'crd', '--nce_k', 8]
    arguments = [*nets, *small, *HELD_OUT, '--epochs', 3, '--save_dir', tmp_path]
    call(main, *arguments, '--trial', 'whole')
    assert test_passes == [24, 24]
    text = capfd.readouterr().out
    assert 'the best epoch is chosen on the validation set; the test set is measured once, at the end\n' in text
    assert ('teacher top-1 on the validation set: ' in text) == (main is train_student.main)
    assert ('without --val_fraction, so the validation images' in text) == (main is train_student.main)
    test_passes.clear()
    validate = task.validate
    monkeypatch.setattr(task, 'validate', lambda loader, net, run, **split: (
        run.epoch == 2 and os.kill(os.getpid(), signal.SIGTERM)) or validate(loader, net, run, **split))
    interrupted(call, main, *arguments, '--trial', 'parts')
    monkeypatch.setattr(task, 'validate', validate)
    call(main, *arguments, '--trial', 'parts', '--resume', 'auto')
    assert test_passes == [24, 24]
    call(main, *arguments, '--trial', 'parts', '--resume', 'auto')
    assert test_passes == [24, 24]
    whole, parts = (next(folder for folder in tmp_path.glob('*/*') if folder.name.endswith(trial) and
                         (folder / 'history.json').exists()) for trial in ('whole', 'parts'))
    assert_same(outcome_of(whole), outcome_of(parts))
    for name in ('test_last_metrics', 'val_best_metrics', 'val_last_metrics'):
        assert read(whole, name) == read(parts, name)
    history, best = read(whole, 'history'), read(whole, 'val_best_metrics')
    assert {'val_loss', 'val_acc', 'val_acc_top5', 'val_classes'} <= {*history[0]} and 'test_acc' not in history[0]
    assert best['val_acc'] == max(epoch['val_acc'] for epoch in history)
    assert read(whole, 'test_best_metrics')['epoch'] == best['epoch']
    assert read(whole, 'test_last_metrics')['epoch'] == 3
    report = read(whole, 'test_best_classes')
    assert (report['epoch'], report['images'], len(report['classes'])) == (best['epoch'], 24, 4)
    assert report['balanced_acc'] == pytest.approx(read(whole, 'test_best_metrics')['test_acc'])    # six of each class
    file = next(whole.glob('*_best.pth'))
    checkpoint = torch.load(file, weights_only=True)
    assert (checkpoint['epoch'], checkpoint['best_acc']) == (best['epoch'], best['val_acc'])
    assert checkpoint['chosen_on'] == 'validation' and checkpoint['val_fraction'] == 0.25
    test_passes.clear()
    call(main, *(['--path-t', teacher] if main is train_student.main else []), *small, '--evaluate', file)
    text = capfd.readouterr().out
    assert f'top-1 {read(whole, "test_best_metrics")["test_acc"]:.2f}, top-5' in text
    assert f'macro F1 {report["macro_f1"]:.2f}, balanced accuracy {report["balanced_acc"]:.2f}, ECE ' in text


def test_a_signal_while_the_test_set_is_measured(call, small, tmp_path, test_passes):
    """The run is not finished then; the next start measures both nets."""
    arguments = ['--model', 'resnet8', *small, *HELD_OUT, '--epochs', 2, '--save_dir', tmp_path, '--resume', 'auto']
    test_passes.append('stop')
    interrupted(call, train_teacher.main, *arguments)
    folder, = tmp_path.glob('models/*')
    assert 'Total time' not in read(folder, 'parameters') and not (folder / 'test_best_metrics.json').exists()
    call(train_teacher.main, *arguments)
    assert test_passes == [24, 24, 24] and 'Total time' in read(folder, 'parameters')


@pytest.mark.parametrize('accuracies, patience, is_over', [
    ([], 1, False), ([5.0], 1, False), ([5.0, 5.0], 1, True), ([5.0, 6.0], 1, False), ([5.0, 6.0, 5.0], 2, False),
    ([5.0, 6.0, 5.0, 6.0], 2, True), ([5.0, 4.0, 3.0], None, False)])
def test_when_patience_ends(accuracies, patience, is_over):
    assert is_out_of_patience([{'val_acc': accuracy} for accuracy in accuracies], patience) == is_over


def test_patience(call, small, tmp_path, test_passes, capfd):
    """The run ends after --patience epochs without a better one, and so it stays; the next start changes nothing."""
    arguments = ['--model', 'resnet8', *small, *HELD_OUT, '--epochs', 9, '--patience', 2, '--learning_rate', 1e-12,
                 '--save_dir', tmp_path, '--resume', 'auto']
    for _ in range(2):
        call(train_teacher.main, *arguments)
        folder, = tmp_path.glob('models/*')
        history, best = read(folder, 'history'), read(folder, 'val_best_metrics')['epoch']
        assert len(history) == best + 2 < 9 and not is_out_of_patience(history[:-1], 2) and test_passes == [24, 24]
        assert f'--patience 2: the validation accuracy has not risen since epoch {best}, so the training ends after ' \
               f'epoch {best + 2} of 9\n' in capfd.readouterr().out


def test_no_test(call, small, tmp_path, test_passes, capfd):
    """The test set is not measured; such a run is left out of comparisons, until the same command measures it."""
    arguments = ['--model', 'resnet8', *small, *HELD_OUT, '--save_dir', tmp_path, '--resume', 'auto']
    call(train_teacher.main, *arguments, '--no_test')
    folder, = tmp_path.glob('models/*')
    assert test_passes == [] and not [*folder.glob('test_*')]
    assert 'on the validation set; the test set is not measured (--no_test), saved in' in capfd.readouterr().out
    with pytest.raises(UserError, match='no figures of the test set, because it was trained with --no_test; give its'):
        read_run(str(folder))
    run = read_run(str(folder), needs_test=False)
    assert (run['top1'], run['last'], run['curve']) == (None, None, [read(folder, 'val_best_metrics')['val_acc']])
    for copy in 'ab':
        shutil.copytree(folder, tmp_path / 'copies' / copy)
    call(train_teacher.main, *arguments)
    assert test_passes == [24, 24]
    capfd.readouterr()
    call(compare.main, tmp_path)
    assert capfd.readouterr().err == 'left out: 2 runs with --no_test, which have no figures of the test set\n'
    assert read_run(str(folder))['top1'] == read(folder, 'test_best_metrics')['test_acc']


def test_the_files_of_a_table(call, small, tmp_path, capfd):
    """A run that --patience ended is finished for compare.py and tables, and forms a row of its own."""
    arguments = ['--model', 'resnet8', *small, '--epochs', 4, '--save_dir', tmp_path]
    call(train_teacher.main, *arguments, *HELD_OUT, '--patience', 1, '-t', 'val')
    call(train_teacher.main, *arguments, '-t', 'test')
    folders = {trial: next(tmp_path.glob(f'models/*_trial_{trial}')) for trial in ('val', 'test')}
    runs = {trial: read_run(str(folder)) for trial, folder in folders.items()}
    for trial, split in (('val', 'validation'), ('test', 'test')):
        assert runs[trial]['chosen_on'] == split and runs[trial]['stopped_early'] == (trial == 'val')
        assert runs[trial]['curve'] == [epoch[f'{trial}_acc'] for epoch in read(folders[trial], 'history')]
        for epoch, key in (('best', 'top1'), ('last', 'last')):
            assert runs[trial][key] == read(folders[trial], f'test_{epoch}_metrics')['test_acc']
        for epochs, is_over in ((4, True), (9, trial == 'val')):
            planned = SimpleNamespace(folder=folders[trial], checkpoint=folders[trial] / 'resnet8_best.pth',
                                      has_students=True, opt=SimpleNamespace(epochs=epochs, no_test=False))
            assert (load_result(planned) is not None) == is_over
    runs['val']['experiment'] = {**runs['test']['experiment'], 'best epoch chosen on': 'validation'}
    assert len(group_trials([*runs.values()])) == 2
    capfd.readouterr()
    call(compare.main, tmp_path)
    out = capfd.readouterr().out
    assert 'alone, best epoch chosen on validation' in out
    assert 'best epochs are chosen on the test or validation set; on the test set, accuracies are optimistic\n' in out
    call(compare.main, folders['val'])
    assert 'best epochs are chosen on the validation set\n' in capfd.readouterr().out
    for trial, split in (('val', 'validation'), ('test', 'test')):
        found = RunCheckpoint.find(str(folders[trial]), 'RUN')
        assert (found.chosen_on, found.metrics_difference()) == (split, '')
    (folders['val'] / 'val_best_metrics.json').write_text('{"val_acc": 1.0, "epoch": 1}')
    assert 'val_best_metrics.json beside it is of another checkpoint' in \
        RunCheckpoint.find(str(folders['val']), 'RUN').metrics_difference()
    with pytest.raises(UserError, match='val_best_metrics.json says top-1 1.0 of epoch'):
        read_run(str(folders['val']))


def test_a_lost_best_checkpoint(call, small, tmp_path, test_passes, capfd):
    """A run whose best weights are lost before the end counts the best again, so that both can be measured."""
    arguments = ['--model', 'resnet8', *small, *HELD_OUT, '--save_dir', tmp_path, '--learning_rate', 1e-9]
    call(train_teacher.main, *arguments, '--epochs', 2)
    folder, = tmp_path.glob('models/*')
    state = torch.load(folder / 'last.pth', weights_only=True)
    state['log']['best'] |= {'epoch': 1, 'val_acc': 100.0}
    torch.save(state, folder / 'last.pth')
    (folder / 'resnet8_best.pth').unlink()
    call(train_teacher.main, *arguments, '--epochs', 3, '--resume', 'auto')
    assert 'does not hold the best checkpoint of epoch 1; the best is determined again' in capfd.readouterr().out
    assert read(folder, 'test_best_metrics')['epoch'] > 1 and len(test_passes) == 4


def test_a_state_of_before(call, small, tmp_path, capfd):
    """A run that chose its best epoch on the test set is not continued on a validation set that the data have."""
    for name, images in (('train', 4), ('test', 2)):
        write_images(tmp_path / 'data' / name, images)
    arguments = ['--model', 'resnet8', *small, '--data_dir', tmp_path / 'data', '--save_dir', tmp_path]
    call(train_teacher.main, *arguments)
    write_images(tmp_path / 'data' / 'val', 2)
    state_file = next(tmp_path.glob('models/*/last.pth'))
    state = torch.load(state_file, weights_only=True)
    del state['identity']['images (checksum)']      # that of an older version had none
    torch.save(state, state_file)
    with pytest.raises(SystemExit) as caught:
        call(train_teacher.main, *arguments, '--resume', 'auto', '--epochs', 2)
    assert caught.value.code == 2
    assert 'with the best epoch chosen on the test set, now on the validation set; give' in capfd.readouterr().err


@pytest.mark.parametrize('saved, fraction, words', [
    ({}, 0.1, 'without --val_fraction'), ({'val_fraction': 0.05}, 0.1, 'with --val_fraction 0.05'),
    ({'val_fraction': 0.1}, 0.1, ''), ({'val_fraction': 0.2}, 0.1, ''), ({}, None, ''),
    ({'val_fraction': 'x'}, 0.1, 'without --val_fraction')])
def test_the_line_about_the_teacher(capsys, saved, fraction, words):
    """A teacher that was trained with a smaller part, or none, may know the validation images."""
    warn_of_val_fraction(SimpleNamespace(val_fraction=fraction), saved, '--path-t x')
    line = f'--path-t x: its net was trained {words}, so the validation images of this run may be among its training ' \
           f'images, and its accuracy on them too high\n'
    assert capsys.readouterr().out == (words and line)


METRICS = {'test_loss': 1.0, 'test_acc': 2.0, 'test_acc_top5': 3.0, 'epoch': 1}


@pytest.mark.parametrize('test, fits', [
    ({}, True), ({'best': METRICS, 'last': METRICS}, True), ({'best': METRICS}, False), ([], False),
    ({'best': METRICS, 'last': {**METRICS, 'epoch': '1'}}, False), ({'best': METRICS, 'last': {'epoch': 1}}, False)])
def test_the_figures_in_an_untrusted_state(test, fits):
    log = {'history': [{'val_acc': 5.0}], 'best': {'val_acc': 5.0, 'epoch': 1}, 'seconds': 1.0, 'test': test}
    assert Records.fits(log) == fits


def test_the_estimate(call, small, tmp_path, test_passes, capfd):
    """An epoch measures the validation set; the test set is timed once, for the end."""
    call(train_teacher.main, '--model', 'resnet8', *small, *HELD_OUT, '--save_dir', tmp_path, '--estimate')
    assert test_passes == [24] and json.loads(capfd.readouterr().out.splitlines()[-1])['hours'] > 0
