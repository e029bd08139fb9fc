"""--distill embed: a student learns the teacher's features without labels, and is fine-tuned afterwards."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU, assert_same, build, losses_of_epoch, write_images
from PIL import Image

import train_student
import train_teacher
from analysis.run_checkpoint import RunCheckpoint, data_options
from analysis.runs import read_run
from distiller_zoo.criteria.embed import match_loss
from distiller_zoo.embed import resize
from helper.checkpoint import load_checkpoint
from helper.compile import compile_forward
from helper.errors import UserError


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """A folder of 40 images without classes."""
    root = tmp_path_factory.mktemp('embed')
    write_images(root, 10)
    return root


def test_the_loss_by_hand():
    s, t = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 0.5]])
    cosine = 1 - (24 / 25 + 0) / 2
    smooth = (0.5 + 0.5 + 0.5 + 0.125) / 4
    assert match_loss(s, t).item() == pytest.approx(0.9 * cosine + 0.1 * smooth)
    maps = [x.t()[None, :, :, None].expand(3, 2, 2, 5) for x in (s, t)]         # each row is a position
    assert match_loss(*maps).item() == pytest.approx(match_loss(s, t).item())


def test_the_map():
    """Of the weight --embed_map; its size becomes the teacher's."""
    distiller, loader, _ = build('embed', embed_map=2.0)
    images, target, index = next(iter(loader))
    out_s, out_t = distiller.student.outputs(images), distiller.teacher_outputs(images)
    want = match_loss(distiller.projection(out_s.embedding), out_t.embedding) + \
        2 * match_loss(distiller.map_projection(out_s.map), out_t.map)
    assert distiller.method_loss(out_s, out_t, target, index).item() == pytest.approx(want.item())
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize(x, torch.zeros(1, 9, 2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resize(x, x) is x and resize(x, torch.zeros(1, 9, 8, 8)).shape == (1, 1, 8, 8)


def test_compiled():
    curves = []
    for compiled in (False, True):
        distiller, loader, _ = build('embed', embed_map=1.0)
        if compiled:
            compile_forward(distiller, 8, CPU)
        learning = [p for p in distiller.parameters() if p.requires_grad]
        curves.append(losses_of_epoch(distiller, loader, torch.optim.SGD(learning, 0.01)))
    assert curves[1] == pytest.approx(curves[0], rel=1e-4) and curves[1] != curves[0]


def embed(call, teacher, save, *more):
    """Train with --distill embed. Returns the folder of the run."""
    call(train_student.main, '--path_t', teacher, '--distill', 'embed', '--epochs', 2, '--gpu_id', 'cpu', '--seed', 1,
         '--num_workers', 2, '--save_dir', save, *more)
    return next(save.glob('student_model/*_embed_*'))


ALONE = ['--image_size', 16, '--unlabelled_batch', 10]


def test_then_fine_tune(call, small, teacher, images, tmp_path, capfd):
    """Without any label or class; then both scripts start from the student, with a new classifier."""
    folder = embed(call, teacher, tmp_path, '--unlabelled', images, *ALONE)
    output = capfd.readouterr().out
    assert 'Embed: resnet14 teaches resnet8 on unlabelled: ' in output
    assert '16 pixels, 38 unlabelled images, 2 test images' in output
    assert "chosen by the mean cosine similarity of the student's and the teacher's embeddings" in output
    assert ' | test loss ' in output and ', cosine similarity ' in output and 'best cosine similarity ' in output
    history = json.loads((folder / 'history.json').read_text())
    best = json.loads((folder / 'test_best_metrics.json').read_text())
    assert best['test_cosine'] == max(epoch['test_cosine'] for epoch in history) and len(history) == 2
    checkpoint = load_checkpoint(str(folder / 'resnet8_best.pth'), '')
    assert not [name for name in checkpoint['model'] if name.startswith('fc')] and 'distiller' not in checkpoint
    assert (checkpoint['num_classes'], checkpoint['classes'], checkpoint['best_cosine']) == (0, [], best['test_cosine'])
    start = ['--initial_checkpoint', folder / 'resnet8_best.pth', *small, '--save_dir', tmp_path]
    for main, flags in ((train_teacher.main, ['--model', 'resnet8']), (train_student.main, ['--path_t', teacher])):
        call(main, *start, *flags)
        assert 'new classifier (fc.weight, fc.bias) of 4 classes, because the checkpoint has none' in \
            capfd.readouterr().out


def test_resume_within_an_epoch(call, teacher, images, tmp_path, interrupt):
    """With --embed_map, and a teacher without a classifier."""
    headless = load_checkpoint(str(teacher), '')
    headless['model'] = {name: value for name, value in headless['model'].items() if not name.startswith('fc')}
    torch.save({**headless, 'num_classes': 0, 'classes': []}, tmp_path / 'headless.pth')
    arguments = ['--unlabelled', images, *ALONE, '--embed_map', 0.5]
    interrupt(6)
    with pytest.raises(SystemExit):
        embed(call, tmp_path / 'headless.pth', tmp_path / 'parts', *arguments)
    interrupt(10**9)
    parts = embed(call, tmp_path / 'headless.pth', tmp_path / 'parts', *arguments, '--resume')
    whole = embed(call, tmp_path / 'headless.pth', tmp_path / 'whole', *arguments)
    states = [load_checkpoint(str(folder / 'last.pth'), '') for folder in (parts, whole)]
    assert_same(*(state['module'] for state in states))
    assert_same(*(state['optimizer']['state'] for state in states))
    assert states[0]['log']['best'] == states[1]['log']['best']


def test_with_a_data_set(call, small, teacher, images, tmp_path, capfd):
    """Its images and the unlabelled ones, without labels; its test images measure. There is no accuracy."""
    folder = embed(call, teacher, tmp_path, *small, '--unlabelled', images, '--unlabelled_batch', 8)
    output = capfd.readouterr().out
    assert '16 pixels, 88 unlabelled images, 24 test images in test' in output and 'teacher top-1' not in output
    with pytest.raises(UserError, match='has no accuracy, because its net was trained without classes'):
        read_run(str(folder))
    embed(call, teacher, tmp_path, *small, '--estimate')
    *words, costs = capfd.readouterr().out.splitlines()
    assert words[-3].startswith('estimate, time: ') and 'classes' not in json.loads(costs)


def test_without_classes_there_is_nothing_to_export():
    run = RunCheckpoint('RUN', Path('x.pth'), {'dataset': 'unlabelled'})
    with pytest.raises(UserError, match='^RUN x.pth: its net was trained without classes; give it to a train script'):
        data_options(run, SimpleNamespace(dataset=None))


def test_refused(call, small, teacher, images, tmp_path, capfd):
    (tmp_path / 'one').mkdir()
    Image.new('RGB', (16, 16)).save(tmp_path / 'one' / '1.png')
    given = ['--unlabelled', images]
    for more, words in (
            (['-r', 1], '-r 1: --distill embed learns no classes'), (['-a', 1], '-a 1: --distill embed learns no'),
            (['--val_fraction', 0.1], '--val_fraction: has no effect with --distill embed'),
            (['--teacher_head', 'linear'], '--teacher_head: has no effect with --distill embed'),
            (['--embed_map', 1, '--teacher_cache'], '--embed_map 1: --teacher_cache stores no maps'),
            (['--unlabelled', tmp_path / 'one'], 'one: has one image; give at least two'),
            ([*given, '--split', '0.5,0.5'], '--split 0.5,0.5: --unlabelled without --dataset holds 5%'),
            (['--dataset', 'unlabelled'], '--dataset unlabelled: no such data set'),
            ([*given, '--dataset', 'unlabelled', '--distill', 'kd'], 'has no classes, but --distill kd'),
            ([*given, '--distill', 'embed+kd'], 'cannot be added: embed learns no classes')):
        with pytest.raises(SystemExit) as caught:
            embed(call, teacher, tmp_path / 'no', *more)
        error = capfd.readouterr().err
        assert caught.value.code == 2 and words in error and error.count('\n') == 1
    assert not (tmp_path / 'no').exists()
