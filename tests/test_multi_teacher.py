"""Several teachers: the losses by hand, one teacher twice, the command line, the cache, resume, export, bad input."""
import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, assert_same, build, outcome

import analysis.estimate
import train_student
import train_teacher
from analysis.run_checkpoint import RunCheckpoint
from distiller_zoo import MultiTeacherKL, distiller_dict
from distiller_zoo.multi_teacher import SeveralTeachers, why_one_teacher
from helper.checkpoint import load_checkpoint, save_checkpoint
from helper.cli import AGREE
from helper.compile import compile_forward
from helper.errors import UserError
from helper.loops import train_epoch
from helper.run_folder import teacher_name
from models.ensemble import Ensemble, options_of_teachers
from models.load import open_checkpoint
from option_checkpoints import load_teacher
from options import student_options
from scripts import compare, export_student, fill_teacher_cache, visualize

TWO = ['resnet14', 'resnet8']


# The losses

def kl_of_images(logits_s, logits_t, temperature=4.0):
    """T^2 * KL of each image, (N,)."""
    p = (logits_t / temperature).softmax(1)
    return temperature**2 * (p * (p.log() - (logits_s / temperature).softmax(1).log())).sum(1)


def step(distiller, loader):
    """(losses, the student's logits, those of each teacher, the classes) of the first batch."""
    images, target, index = next(iter(loader))
    losses, logits = distiller(images, target, index)
    return losses, logits, [net(images) for net in distiller.teacher], target


def test_soft_labels_by_hand():
    """Weights 1,3: a quarter of the first teacher's loss, three of the second's; as if to the mean of their
    probabilities, of which the gradient is the same."""
    distiller, loader, _ = build('kd', TWO, teacher_weights=[1.0, 3.0])
    losses, logits, (a, b), target = step(distiller, loader)
    want = (kl_of_images(logits, a) + 3 * kl_of_images(logits, b)).mean() / 4
    torch.testing.assert_close(losses['kl'], want)
    torch.testing.assert_close(losses['kl'], MultiTeacherKL(4, [1.0, 3.0])(logits, [a, b]))
    assert losses['loss'].item() == pytest.approx((losses['ce'] + losses['kl']).item())
    mean = ((a / 4).softmax(1) + 3 * (b / 4).softmax(1)) / 4
    to_mean = 16 * F.kl_div((logits / 4).log_softmax(1), mean, reduction='batchmean')
    gradients = [torch.autograd.grad(loss, distiller.student.fc.weight, retain_graph=True)[0]
                 for loss in (losses['kl'], to_mean)]
    torch.testing.assert_close(*gradients)


def test_each_image_follows_the_teacher_that_knows_its_class():
    distiller, loader, _ = build('kd', [*TWO, 'resnet8'], teacher_weights=AGREE)
    losses, logits, of_teachers, target = step(distiller, loader)
    errors = torch.stack([F.cross_entropy(t, target, reduction='none') for t in of_teachers])
    weights = (1 - errors.exp() / errors.exp().sum(0)) / 2
    want = sum(w * kl_of_images(logits, t) for w, t in zip(weights, of_teachers, strict=True)).mean() / 3
    torch.testing.assert_close(losses['kl'], want)
    torch.testing.assert_close(losses['kl'], MultiTeacherKL(4, 'confidence')(logits, of_teachers, target))


def test_the_mean_of_the_probabilities():
    nets = [torch.nn.Linear(3, 4) for _ in range(3)]
    x = torch.randn(5, 3)
    a, b, _ = (net(x).softmax(1) for net in nets)
    torch.testing.assert_close(Ensemble(nets, [1.0, 3.0, 0.0])(x).exp(), (a + 3 * b) / 4)
    torch.testing.assert_close(Ensemble(nets, [1e-300, 3e-300, 0.0])(x).exp(), (a + 3 * b) / 4)
    with torch.no_grad():
        nets[1].weight.mul_(1e4)        # probabilities that underflow
    assert Ensemble(nets[:2], [0.0, 1.0])(x).isfinite().all()


@pytest.mark.parametrize('method, weights', [('kd', None), ('kd', AGREE), ('hint', [1.0, 2.0]), ('kd+vid', [2.0, 1.0])])
def test_one_teacher_twice_is_one_teacher(method, weights):
    """With equal parts; `agree` gives each a half, and its mean over the teachers halves the loss on soft labels."""
    alone, loader, _ = build(method, 'resnet14')
    twice, _, _ = build(method, ['resnet14', 'resnet14'], teacher_weights=weights)
    twice.student.load_state_dict(alone.student.state_dict())
    state = {name: value for name, value in alone.state_dict().items() if not name.startswith('student.')}
    for net, part in zip(twice.teacher, twice.parts, strict=True):
        net.load_state_dict(alone.teacher.state_dict())
        part.load_state_dict(state)
    batch = next(iter(loader))
    want, found = ({name: loss.item() for name, loss in distiller(*batch)[0].items()} for distiller in (alone, twice))
    if weights == AGREE:
        want = {**want, 'kl': want['kl'] / 2, 'loss': want['ce'] + want['kl'] / 2}
    assert found == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize('method', [*distiller_dict, 'kd+crd', 'mlld+pkt'])
def test_every_method_works_or_is_refused(method):
    """Each part learns, none holds a student or a teacher."""
    if any(why_one_teacher(name, distiller_dict[name]) for name in method.split('+')):
        with pytest.raises(UserError, match=f'^--path-t a b: --distill {method} learns from one teacher alone: '):
            student_options(['--path-t', 'a', 'b', '--distill', method])
        return
    distiller, _, _ = build(method, TWO)
    distiller.begin_epoch(1, 2)
    images = torch.randn(8, 3, 16, 16)
    images = images if len(distiller.spec.views) == 1 else torch.stack([images, images])
    losses, _ = distiller.train()(images, torch.arange(8), torch.arange(8))
    losses['loss'].backward()
    distiller.end_epoch()
    assert len(distiller.parts) == 2 and isinstance(distiller, SeveralTeachers) and losses['loss'].isfinite()
    of_parts = [name for name, _ in [*distiller.parts.named_parameters(), *distiller.parts.named_buffers()]]
    assert not any('student' in name or 'teacher' in name for name in of_parts)
    learns = {name.split('.')[0] for name, p in distiller.parts.named_parameters() if p.grad is not None}
    assert learns == ({'0', '1'} if [*distiller.parts.parameters()] else set())
    assert not any(net.training for net in distiller.teacher)


@pytest.mark.parametrize('teacher', ['resnet14', TWO])
def test_teachers_that_are_not_used_stay_in_main_memory(teacher):
    """Of a sum of methods, with one teacher or two."""
    distiller, _, _ = build('kd+vid', teacher)
    distiller.moves_teacher = False
    distiller.to(torch.float64)
    assert {p.dtype for p in distiller.teacher.parameters()} == {torch.float32}
    distiller.moves_teacher = True
    distiller.to(torch.float64)
    assert {p.dtype for p in distiller.teacher.parameters()} == {torch.float64} == \
        {p.dtype for p in distiller.parameters()}


def test_measured_weights_and_pictures():
    distiller, loader, opt = build('semckd', TWO, beta='auto')
    distiller.begin_epoch(1, 2)
    train_epoch(1, loader, distiller, distiller.make_optimizer(1e-4, opt), opt)
    assert distiller.measured_weights()['beta'] > 0 and {*distiller.pictures()} == {'attention_1', 'attention_2'}
    assert {*distiller.spec.own_buffers} <= {name for name, _ in distiller.named_buffers()}
    assert not any('auto_weights' in name for name in distiller.parts.state_dict())


def test_compiled_equals_eager():
    losses = []
    for compiles in (False, True):
        distiller, loader, opt = build('semckd', TWO)
        if compiles:
            compile_forward(distiller, 8, CPU)
        losses.append(train_epoch(1, loader, distiller, distiller.make_optimizer(1e-3, opt), opt)['loss'])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[1] != losses[0]


def test_teachers_with_their_classes_in_another_order(teacher, capsys):
    """Both are matched to the data, so an ensemble of one net in two orders is that net."""
    checkpoint = open_checkpoint(str(teacher))
    order = [2, 0, 3, 1]
    other = {**checkpoint, 'classes': [checkpoint['classes'][i] for i in order],
             'model': {name: value[order] if name.startswith('fc.') else value
                       for name, value in checkpoint['model'].items()}}
    opt = student_options(['--path-t', 'a.pth', 'b.pth'])
    opt.model_t = ['resnet14', 'resnet14']
    data = SimpleNamespace(num_classes=4, image_size=16, inputs=checkpoint['inputs'], classes=(*checkpoint['classes'],))
    both = load_teacher(opt, [checkpoint, other], data, CPU).eval()
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(both(images), both[0](images).log_softmax(1))
    assert '--path-t b.pth: has the classes of the data in another order' in capsys.readouterr().out


def test_folder_of_many_teachers():
    assert teacher_name(['resnet20', 'nets/a.py:b']) == 'resnet20+nets-a.py:b' and teacher_name('vgg8') == 'vgg8'
    long = teacher_name(['timm:' + 100 * 'x', 'vgg8']), teacher_name(['timm:' + 100 * 'x', 'vgg13'])
    assert [len(name) for name in long] == [89, 89] and long[0] != long[1]


# The command line

@pytest.fixture(scope='module')
def both(call, teacher, small, tmp_path_factory):
    """The flags of a run with two teachers."""
    save = tmp_path_factory.mktemp('second')
    call(train_teacher.main, '--model', 'resnet8', '--save_dir', save, *small, '--seed', 2)
    second, = save.glob('models/*/resnet8_best.pth')
    return ['--path-t', teacher, second, '--model_s', 'resnet8', *small]


def line(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


@pytest.fixture(scope='module')
def taught(call, both, tmp_path_factory):
    """(the folder of a run with --teacher_weights 1,2, what it printed)."""
    save, out = tmp_path_factory.mktemp('taught'), io.StringIO()
    with contextlib.redirect_stdout(out):
        call(train_student.main, *both, '--save_dir', save, '--teacher_weights', '1,2')
    folder, = save.glob('student_model/*')
    return folder, out.getvalue()


def test_what_a_run_prints_and_writes(call, both, taught, capsys):
    folder, out = taught
    assert folder.name == 'S:resnet8_T:resnet14+resnet8_folder_kd_r:1.0_a:1.0_b:0.0_1'
    assert line(out, 'KD: ').startswith('KD: resnet14 + resnet8 teaches resnet8 on folder')
    parameters = json.loads((folder / 'parameters.json').read_text())
    assert parameters['path_t'] == [str(path) for path in both[1:3]] and parameters['teacher_weights'] == [1.0, 2.0]
    assert parameters['model_t'] == ['resnet14', 'resnet8'] and len(parameters['teacher (checksum)']) == 2
    call(compare.main, folder)
    assert 'kd, taught by resnet14 + resnet8' in capsys.readouterr().out


def test_accuracies(call, both, taught, tmp_path, capsys):
    """Those of --evaluate are printed before the training, and that of the ensemble is in the model card."""
    folder, out = taught
    call(train_student.main, *both, '--teacher_weights', '1,2', '--evaluate')
    evaluated = capsys.readouterr().out
    accuracies = [line(evaluated, f'{name}: top-1').split()[2].rstrip(',') for name in (*TWO, 'ensemble')]
    assert line(out, 'teacher top-1: ') == 'teacher top-1: resnet14 {}, resnet8 {}, ensemble {}'.format(*accuracies)
    call(export_student.main, folder, '--out', tmp_path / 'export', '--formats', 'safetensors')
    card = (tmp_path / 'export' / 'MODEL_CARD.md').read_text()
    assert ', taught by resnet14 + resnet8 with `kd`' in card
    assert f'| teacher, on the 24 test images of folder | {accuracies[2]} |' in card


def test_another_teacher_does_not_resume(call, both, taught, tmp_path, capsys):
    other = load_checkpoint(str(both[2]), '')
    other['model']['fc.bias'] += 1
    save_checkpoint(tmp_path / 'other.pth', other)
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *both[:2], tmp_path / 'other.pth', *both[3:], '--teacher_weights', '1,2', '--resume',
             'auto', '--save_dir', taught[0].parents[1])
    assert caught.value.code == 2 and 'another run, with teacher (checksum) [' in capsys.readouterr().err


def test_resumed_to_the_bit(call, both, tmp_path):
    """With trainable parts, weights by image, and caches that the run fills."""
    flags = [*both, '--distill', 'srrl', '--teacher_weights', AGREE, '--teacher_cache', tmp_path / 'cache']
    call(train_student.main, *flags, '--epochs', 2, '--save_dir', tmp_path / 'whole')
    shutil.rmtree(tmp_path / 'cache')
    for epochs in (1, 2):
        call(train_student.main, *flags, '--epochs', epochs, '--resume', 'auto', '--save_dir', tmp_path / 'parts')
    assert_same(outcome(tmp_path / 'whole'), outcome(tmp_path / 'parts'))
    assert len([*tmp_path.glob('cache/*.cache')]) == 4       # logits and embeddings of both


def test_the_cache_of_each(call, both, tmp_path, monkeypatch, capsys):
    """A file a teacher, which runs with that teacher alone share; with full caches no teacher is called."""
    several = [*both, '--save_dir', tmp_path, '--cache_epochs', 1]
    call(fill_teacher_cache.main, *several[:2], *several[3:])
    assert len([*tmp_path.glob('teacher_cache/*_logits.cache')]) == 1
    call(fill_teacher_cache.main, *several)
    assert len([*tmp_path.glob('teacher_cache/*_logits.cache')]) == 2
    call(train_student.main, *several, '--teacher_cache')       # it measures the accuracy of the ensemble
    expected, calls = capsys.readouterr().out, []
    monkeypatch.setattr(SeveralTeachers, 'teacher_outputs', lambda *_: calls.append(1))
    monkeypatch.setattr(Ensemble, 'forward', lambda *_: calls.append(1))
    call(train_student.main, *several, '--teacher_cache', '--trial', 2)
    found = capsys.readouterr().out
    assert not calls and line(found, 'teacher top-1') == line(expected, 'teacher top-1')
    monkeypatch.undo()
    call(train_student.main, *several, '--skip-validation', '--trial', 3)       # without a cache
    assert line(capsys.readouterr().out, 'epoch 1')[:40] == line(found, 'epoch 1')[:40]


def test_estimate(call, both, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(analysis.estimate, 'SECONDS', 0.05)
    call(train_student.main, *both, '--estimate', '--teacher_cache', '--save_dir', tmp_path)
    call(train_student.main, *both[:2], *both[3:], '--estimate', '--teacher_cache', '--save_dir', tmp_path)
    of_two, of_one = (json.loads(text)['teacher_cache_bytes'] for text in capsys.readouterr().out.splitlines()
                      if text.startswith('{'))
    assert of_two == 2 * of_one > 0
    assert not [*tmp_path.iterdir()]


def test_teachers_of_a_run(taught):
    """What an export reads from parameters.json, which may be damaged."""
    folder, _ = taught
    run = RunCheckpoint.find(str(folder), 'RUN')
    assert [(Path(file).name, args['name']) for file, args in run.teachers()] == [
        ('resnet14_best.pth', 'resnet14'), ('resnet8_best.pth', 'resnet8')]
    assert run.teacher_weights(2) == [1.0, 2.0]
    with pytest.raises(UserError, match=r'^--path-t: these students have several teachers, .*resnet14_best.pth, .*'
                                        r'resnet8_best.pth; give the one to compare with'):
        visualize.find_teacher([run])
    for name, value in (('path_t', [1, 2]), ('path_t', None), ('model_t', ['resnet14']), ('size_t', ['-', 'x'])):
        assert RunCheckpoint('RUN', run.checkpoint, {**run.parameters, name: value}).teachers() == []
    for weights in ([1.0], ['1', '2'], [0.0, 0.0], [-1.0, 2.0], AGREE, None):
        damaged = RunCheckpoint('RUN', run.checkpoint, {**run.parameters, 'teacher_weights': weights})
        assert damaged.teacher_weights(2) is None


# Bad input

@pytest.mark.parametrize('flags, words', [
    (['--teacher_weights', '1,2'], '--teacher_weights 1.0,2.0: --path-t names one teacher; leave it out'),
    (['--teacher_weights', 'agree'], '--teacher_weights agree: --path-t names one teacher; leave it out'),
    (['b', '--teacher_weights', '1'], '--teacher_weights 1.0: --path-t names 2 teachers; give 2 weights'),
    (['b', '--teacher_weights=-1,2'], '--teacher_weights: -1,2: give numbers from 0 to 1000000 with commas, as 1,2'),
    (['b', '--teacher_weights', '1e308,1e308'], '--teacher_weights: 1e308,1e308: give numbers from 0 to 1000000 with'),
    (['b', '--teacher_weights', '1,0'], '--teacher_weights 1.0,0.0: teacher 2 has the weight 0; leave its path out of'),
    (['b', '--teacher_weights', 'agree', '--mixup', '0.2'],
     '--teacher_weights agree: needs the class of each image, but --mixup 0.2 mixes them; give numbers, as 1,2,1'),
    (['b', '--teacher_weights', 'agree', '--unlabelled', 'x', '-r', '0'],
     '--teacher_weights agree: needs the class of each image, but images of --unlabelled x have none; give numbers'),
    (['b', '--teacher_weights', 'agree', '--distill', 'rkd+crd'],
     '--teacher_weights agree: weights the soft labels, but --distill rkd+crd has none with -a 0; give numbers'),
    (['b', '--teacher_weights', 'agree', '--distill', 'mlld', '-a', '1'], 'agree: --distill mlld uses several views'),
    (['b', '--distill', 'kd+fsp'], '--distill kd+fsp learns from one teacher alone: fsp has a first stage; give one'),
    (['b', '--model_t', 'vgg8'], '--model_t vgg8: --path-t names 2 teachers; give a value for each, - for one'),
    (['--mean_t', '0,0,0', '-'], '--mean_t 0.0,0.0,0.0 -: --path-t names 1 teacher; give a value for each')])
def test_refused(flags, words):
    with pytest.raises(UserError) as caught:
        student_options(['--path-t', 'a', *flags])
    assert words in str(caught.value)


def test_teachers_with_other_classes(call, both, teacher, tmp_path, capsys):
    checkpoint = load_checkpoint(str(teacher), '')
    save_checkpoint(tmp_path / 'other.pth', {**checkpoint, 'classes': ['ant', 'bee', 'cat', 'eel']})
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *both[:2], tmp_path / 'other.pth', *both[3:], '--save_dir', tmp_path / 'save')
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count('\n') == 1 and not (tmp_path / 'save').exists()
    assert f'--path-t {tmp_path / "other.pth"}: its class names are not those of the data' in error


def test_a_value_for_each_teacher():
    """'-' where the checkpoint says it; parameters.json has texts."""
    opt = student_options(['--path-t', 'a', 'b', '--model_t', '-', 'vgg8', '--std_t', '1,1,.5', '-', '--stages_t', '-',
                           '0,2', '--size_t', '-', '64', '--distill', 'attention'])
    assert opt.std_t == ['1.0,1.0,0.5', '-'] and opt.mean_t is None
    assert [(of.path_t, of.model_t, of.std_t, of.stages_t, of.size_t) for of in options_of_teachers(opt)] == [
        ('a', None, [1, 1, 0.5], None, None), ('b', 'vgg8', None, [0, 2], 64)]
    assert options_of_teachers(alone := student_options(['--path-t', 'a', '--size_t', '64'])) == [alone]
    assert (alone.path_t, alone.size_t) == ('a', 64)
