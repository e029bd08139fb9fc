"""scripts/own_photos.py: the table of runs for a folder of photographs, and the best student of finished runs."""
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import write_images

import train_student
import train_teacher
from experiments.plan import plan_runs
from experiments.table_file import read_table
from helper.checkpoint import save_checkpoint
from helper.errors import UserError
from models.find import build
from options import student_options, teacher_options
from scripts import own_photos

NETS = ['resnet14', 'resnet8']


@pytest.fixture
def plan(call, tmp_path):
    """plan(folder, *arguments): write the table into tmp_path/save; returns it."""

    def run(*arguments):
        call(own_photos.main, 'plan', tmp_path / 'save', *arguments)
        return read_table(tmp_path / 'save' / own_photos.TABLE)
    return run


@pytest.fixture
def photos(tmp_path):
    """photos(*splits): a folder whose splits, or which itself, has 4 classes of 12 images."""
    def write(*splits):
        for split in splits or ('',):
            write_images(tmp_path / 'my photos' / split, 12)
        return tmp_path / 'my photos'
    return write


@pytest.mark.parametrize('splits, flags', [
    ((), {'split': [0.7, 0.15, 0.15], 'val_fraction': None}),
    (('train',), {'split': [0.7, 0.15, 0.15], 'val_fraction': None}),
    (('train', 'val'), {'split': None, 'val_fraction': 0.15}),      # val beside train alone is the test set
    (('train', 'test'), {'split': None, 'val_fraction': 0.15}),
    (('train', 'val', 'test'), {'split': None, 'val_fraction': None})])
def test_how_a_folder_is_divided(plan, photos, splits, flags):
    folder = photos(*splits)
    table = plan(folder, *NETS, '--epochs', 30, '--image_size', 64, '--batch_size', 4)
    teacher = teacher_options(['--model', table.pairs[0].teacher, *table.options, *table.teacher_options])
    student = student_options(['--path-t', 'x', *table.options, *table.student_options])
    for opt in (teacher, student):
        assert {name: getattr(opt, name) for name in flags} == flags and opt.data_dir == str(folder)
        assert (opt.epochs, opt.image_size, opt.batch_size, opt.patience, opt.freeze_epochs) == (30, 64, 4, 10, 0)
    assert str(table.pairs[0]) == 'resnet14 -> resnet8' and table.rows[0].method == 'alone'


def test_pretrained_starts(plan, photos, tmp_path, capsys):
    """A file of weights sets the net, fewer epochs for the teacher, a frozen first epoch and a slower backbone."""
    save_checkpoint(tmp_path / 'weights.pth', {'model': build('resnet14', 7, 32).state_dict(), 'arch': 'resnet14'})
    table = plan(photos(), tmp_path / 'weights.pth', 'timm:resnet10t.c3_in1k', '--epochs', 20, '--image_size', 32)
    assert str(table.pairs[0]) == 'resnet14 -> timm:resnet10t'
    opt = teacher_options(['--model', 'resnet14', *table.options, *table.teacher_options])
    assert (opt.initial_checkpoint, opt.epochs, opt.freeze_epochs) == (str(tmp_path / 'weights.pth'), 10, 1)
    assert (opt.backbone_lr, opt.layer_decay) == (0.1, 1)
    assert own_photos.backbone_flags('timm:resnet10t', 32) == ['--layer_decay', '0.75']
    opt = student_options(['--path-t', 'x', *table.options, *table.student_options])
    assert (opt.pretrained, opt.initial_checkpoint, opt.epochs, opt.freeze_epochs) == (False, None, 20, 0)
    assert 'STUDENT timm:resnet10t.c3_in1k: starts from random weights' in capsys.readouterr().out


def test_weights_of_another_program(plan, photos, tmp_path, capsys):
    """They do not name their net; TEACHER does."""
    file = tmp_path / 'resnet10t.pth'
    torch.save(build('timm:resnet10t', 7, 32).net.state_dict(), file)
    with pytest.raises(SystemExit):
        plan(photos(), file)
    assert 'give the net as TEACHER, and this file as --teacher_checkpoint' in capsys.readouterr().err
    table = plan(tmp_path / 'my photos', 'timm:resnet10t', 'resnet8', '--teacher_checkpoint', file, '--image_size', 32)
    assert table.pairs[0].teacher == 'timm:resnet10t'
    assert table.teacher_options[:2] == ['--initial_checkpoint', str(file)]


def test_published_weights(monkeypatch):
    monkeypatch.setattr(own_photos, 'open_published', lambda name: SimpleNamespace(inputs={}))
    for name, flags in (('timm:resnet10t', ['--pretrained']), ('timm:cspresnet50w', [])):       # which has none
        assert own_photos.find_net(name, None, 32, 'TEACHER') == (name, flags, {})


@pytest.mark.parametrize('arguments, words', [
    ([], 'FOLDER: give a folder, then up to two nets'),
    (['nowhere'], 'FOLDER nowhere: no such folder; give one with images in nowhere/CLASS/*'),
    (['few'], 'FOLDER few: too few images to divide in the class dog (1); give each class 10 or more'),
    (['one'], 'FOLDER one: holds the class ant alone'),
    (['photos', 'timm:resnt18'], 'TEACHER timm:resnt18: timm '),
    (['photos', 'resnet14', 'resnt8'], 'STUDENT resnt8: no such model; did you mean resnet8'),
    (['photos', 'resnet14', 'resnet8', '--teacher_checkpoint', 'x.pth'], '--initial_checkpoint x.pth: no such file'),
    (['photos', 'lite0/model.safetensors'], 'TEACHER lite0/model.safetensors: no such file or folder'),
    (['photos', '--epoch', '3'], '--epoch: no such flag; did you mean --epochs'),
    (['photos', '--split', '0.8,0.2'], 'own_photos.sh: --split: the program sets this flag itself; leave it out'),
    (['photos', '--data-dir', 'x'], 'own_photos.sh: --data-dir: the program sets this flag itself; leave it out'),
    (['photos', '--epochs', '0'], '--epochs: 0: give a whole number of at least 1')])
def test_bad_input_is_one_line(plan, tmp_path, monkeypatch, capsys, arguments, words):
    """Nothing is written."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / 'photos', 12)
    write_images(tmp_path / 'few', 12, classes=('ant', 'bee'))
    write_images(tmp_path / 'few', 1, classes=('dog',))
    write_images(tmp_path / 'one', 12, classes=('ant',))
    with pytest.raises(SystemExit) as caught:
        plan(*arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith(f'error: {words}') and error.count('\n') == 1
    assert not (tmp_path / 'save').exists()


def change(file, edit):
    """Write a JSON file again after edit(its content)."""
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_the_best_student(plan, photos, call, tmp_path, capsys):
    """From the plan to the summary. The validation set decides, even if the test set says the opposite."""
    folder, save = photos(), tmp_path / 'save'
    arguments = folder, *NETS, '--epochs', 1, '--image_size', 32
    plan(*arguments)
    table = save / own_photos.TABLE
    table.write_text(table.read_text().partition('ReviewKD =')[0])
    runs = plan_runs(read_table(table), str(save), [])
    for run in runs:
        main = train_student.main if hasattr(run.opt, 'distill') else train_teacher.main
        call(main, *run.arguments, '--gpu_id', 'cpu', '--num_workers', 0)
    accuracies = {'Student': (50.0, 60.0), 'KD': (70.0, 10.0), 'DKD': (60.0, 90.0)}
    for run in runs[1:]:
        val, test = accuracies[run.cells[0][0]]
        change(run.folder / 'history.json', lambda history, val=val: history[0].update(val_acc=val))
        change(run.folder / 'val_best_metrics.json', lambda metrics, val=val: metrics.update(val_acc=val))
        change(run.folder / 'test_best_metrics.json', lambda metrics, test=test: metrics.update(test_acc=test))
    call(own_photos.main, 'best', save)
    assert (save / 'best.txt').read_text() == f'{runs[2].folder}\n' and '_kd_' in runs[2].folder.name
    lines = [line.split() for line in (save / 'summary.txt').read_text().splitlines()]
    assert lines[3] == ['student', 'alone', 'resnet8,', 'Student', '50.00', '60.00']
    assert lines[4] == ['best', 'distilled', 'resnet8,', 'KD', '70.00', '10.00']
    assert lines[5][:3] == ['8', 'test', 'images,']         # 2 of each class
    test_images = json.loads((runs[2].folder / 'split.json').read_text())['test']
    examples = {file.name.replace('_', '/') for file in (save / 'examples').iterdir()}
    assert len(examples) == own_photos.EXAMPLES and examples < {*test_images}

    # The same command keeps the table, also a changed one; another is refused.
    table.write_text(table.read_text() + 'RKD = "rkd"\n')
    assert [row.label for row in plan(*arguments).rows][-1] == 'RKD'
    capsys.readouterr()
    with pytest.raises(SystemExit):
        plan(*arguments[:2], '--epochs', 1)
    assert f"has the runs of own_photos.sh '{folder}' resnet14 resnet8 --epochs 1" in capsys.readouterr().err
    shutil.rmtree(runs[3].folder)
    with pytest.raises(SystemExit):
        call(own_photos.main, 'best', save)
    assert str(runs[3].folder) in capsys.readouterr().err


def test_earlier_tables_stay(plan, photos, tmp_path, capsys):
    """One of the same command with its edits; one of another command under another name. Others are written again."""
    folder, table = photos(), tmp_path / 'save' / own_photos.TABLE
    plan(folder, *NETS, '--epochs', 2)
    plan(folder, *NETS, '--epochs', 1)
    assert [*table.parent.iterdir()] == [table]
    edited = table.read_text() + 'CRD = "crd"\n'
    table.write_text(edited)
    assert [row.label for row in plan(folder, *NETS, '--epochs', 1).rows][-1] == 'CRD'
    assert f'{table}: stays as it is, with your changes\n' in capsys.readouterr().out
    assert [row.label for row in plan(folder, *NETS, '--epochs', 2).rows][-1] == 'ReviewKD'
    assert f'that file is now {table}.1\n' in capsys.readouterr().out
    assert table.with_name(f'{table.name}.1').read_text() == edited


@pytest.mark.parametrize('save, said', [('photos', 'lies in FOLDER'), ('photos/sub', 'lies in FOLDER'),
                                        ('mine', 'has a folder `examples` already')])
def test_folders_of_the_user_are_refused(photos, call, tmp_path, monkeypatch, capsys, save, said):
    folder = photos()
    (tmp_path / 'mine' / 'examples').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        call(own_photos.main, 'plan', save.replace('photos', str(folder)), folder, *NETS)
    assert caught.value.code == 2 and said in capsys.readouterr().err


def test_examples_are_copies(photos, tmp_path):
    """Unreadable images are left out, files of the user stay."""
    files = [str(file) for file in sorted(photos().glob('*/*'))]
    Path(files[0]).write_bytes(b'')
    own_photos.copy_examples(files, tmp_path / 'examples')
    own_photos.copy_examples(files, tmp_path / 'examples')
    names = {file.name for file in (tmp_path / 'examples').iterdir()}
    assert len(names) == own_photos.EXAMPLES and '_'.join(Path(files[0]).parts[-2:]) not in names
    (tmp_path / 'examples' / 'mine.jpg').write_bytes(b'')
    with pytest.raises(UserError, match='examples: holds mine.jpg, which is no copy of a test image'):
        own_photos.copy_examples(files, tmp_path / 'examples')
    assert names < {file.name for file in (tmp_path / 'examples').iterdir()}


def test_test_files_of_a_split(photos):
    folder = photos('train', 'test')
    files = own_photos.test_files(SimpleNamespace(data_dir=str(folder), split=None, val_fraction=0.15))
    assert len(files) == 48 and {file.split('/')[-3] for file in files} == {'test'}
