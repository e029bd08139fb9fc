"""The contract of a method: one that uses every part, from one file, trains, resumes and runs in two processes."""
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, ROOT, assert_same, build, data_options, first_view, forked, free_port, outcome

import dataset
import train_student
import train_teacher
from distiller_zoo import Distiller, Spec, distiller_dict, load_inference_net
from distiller_zoo.checks import check_declaration
from distiller_zoo.criteria.kd import distill_kl
from distiller_zoo.logit_transforms import transforms
from helper.checkpoint import load_checkpoint
from helper.cli import number
from helper.compile import compile_forward
from helper.errors import UserError
from helper.loops import train_epoch, validate
from models.base import Outputs
from options import student_options

FILE = ROOT / 'tests' / 'fixtures' / 'every_part.py'


@pytest.fixture(scope='module')
def every_part():
    """The module of the file; its method, its transform and its fewer digits are there for these tests alone."""
    before = dict(distiller_dict), list(transforms), dict(dataset.memory_dict)
    from fixtures import every_part as module
    distiller_dict['every_part'] = module.EveryPartDistiller
    own = [transform for transform in before[1] if transform is not module.LearntTemperature]
    transforms[:] = [*own, module.LearntTemperature]
    dataset.memory_dict['digits'] = module.fewer_digits
    yield module
    for known, entries in zip((distiller_dict, dataset.memory_dict), before[::2], strict=True):
        known.clear()
        known.update({name: entry for name, entry in entries.items() if name != 'every_part'})
    transforms[:] = own


@pytest.fixture(scope='module')
def teacher(tmp_path_factory, call, every_part):
    """A resnet8 trained for an epoch on the digits."""
    save = tmp_path_factory.mktemp('digits')
    call(train_teacher.main, '--model', 'resnet8', '--dataset', 'digits', '--epochs', 1, '--batch_size', 48,
         '--gpu_id', 'cpu', '--seed', 1, '--save_dir', save, '--learning_rate', 0.02)
    return next(save.glob('models/*/resnet8_best.pth'))


@pytest.fixture(scope='module')
def run(call, teacher, every_part):
    """run(save_dir, *flags, code=0): train_student.py with the method on digits, 6 steps an epoch. Returns its output.

    alone=True: in a new process. kill_at=n: in a forked one, which kills itself after so many steps.
    """
    def run(save, *flags, code=0, alone=False, kill_at=0):
        arguments = ['--path-t', teacher, '--distill', 'every_part', '--dataset', 'digits', '--batch_size', '48',
                     '--epochs', '2', '--gpu_id', 'cpu', '--seed', '1', '--save_dir', save, '--learning_rate', '0.02',
                     '--num_workers', '0', '--learnt_temperature', *flags]
        if kill_at:
            def killed():
                every_part.kill_at(kill_at)
                train_student.main()
            process = forked(killed, *arguments, out=os.devnull, err=os.devnull)
            process.join()
            assert process.exitcode == code
            return ''
        if alone:
            done = subprocess.run([sys.executable, FILE, *arguments], capture_output=True, text=True,
                                  env={**os.environ, 'FEWER_DIGITS': '1'})
            assert done.returncode == code, done.stdout + done.stderr
            return done.stdout + done.stderr
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                call(train_student.main, *arguments)
                ended = 0
            except SystemExit as error:
                ended = error.code
        assert ended == code, out.getvalue()
        return out.getvalue()
    return run


def folder_of(save):
    return next(save.glob('student_model/*'))


RESUMABLE = ('--save_every', '1e-9', '--resume')


@pytest.fixture(scope='module')
def whole(run, tmp_path_factory):
    """The --save_dir of a run of two epochs that was not interrupted."""
    save = tmp_path_factory.mktemp('whole')
    run(save, *RESUMABLE)
    return save


def test_it_trains_and_resumes_to_the_bit(run, tmp_path, whole):
    """Killed in the middle of the second epoch, with two momenta for each parameter."""
    run(tmp_path, *RESUMABLE, code=-signal.SIGKILL, kill_at=9)
    assert 'after step 3 of epoch 2' in run(tmp_path, *RESUMABLE)
    assert_same(outcome(tmp_path), outcome(whole))
    state = load_checkpoint(str(folder_of(whole) / 'last.pth'), '')
    assert {name for part in state['optimizer']['state'].values() for name in part} == {'task', 'distillation'}
    assert state['module']['logit_transforms.0.theta'] != 0 and state['module']['seen'] > 0
    assert state['module']['epochs_ended'] == 2
    assert state['module']['images'] == 288         # prepared once, although it was resumed


@pytest.mark.slow
def test_adamw_resumes_to_the_bit(run, tmp_path):
    flags = ['--every_optimizer', 'adamw', '--epochs', '1', *RESUMABLE]
    run(tmp_path / 'whole', *flags)
    run(tmp_path / 'parts', *flags, code=-signal.SIGKILL, kill_at=4)
    run(tmp_path / 'parts', *flags)
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))
    state = load_checkpoint(str(folder_of(tmp_path / 'whole') / 'last.pth'), '')
    assert set(state['optimizer']['state'][0]) == {'step', 'exp_avg', 'exp_avg_sq'}


def test_what_it_deploys(tmp_path, whole, call, capsys):
    """Its own flag and weights, and the network of inference_net in the checkpoint."""
    folder = folder_of(whole)
    assert folder.name == 'S:resnet8_T:resnet8_digits_every_part_r:0.5_a:1.0_b:2.0_1'
    parameters, history = (json.loads((folder / f'{name}.json').read_text()) for name in ('parameters', 'history'))
    assert parameters['every_margin'] == 0.5 and history[-1]['margin'] == [[0.5]]
    best = folder / 'resnet8_best.pth'
    checkpoint = load_checkpoint(str(best), '')
    assert checkpoint['inference_net'] == 'every_part' and 'head.weight' in checkpoint['model']
    assert parameters['Total params'] == pytest.approx(sum(
        v.numel() for k, v in checkpoint['model'].items() if 'running' not in k and 'num_batches' not in k) / 1e6)

    data = dataset.get_dataloaders(data_options(dataset='digits', batch_size=48), CPU)
    name, net = load_inference_net(str(best), data, '--evaluate')
    accuracy = validate(data.test_loader, net)['test_acc']
    assert name == 'resnet8 by every_part' and accuracy == pytest.approx(checkpoint['best_acc'])
    call(train_teacher.main, '--evaluate', best, '--dataset', 'digits', '--gpu_id', 'cpu')
    assert f'resnet8 by every_part: top-1 {accuracy:.2f}' in capsys.readouterr().out

    for change, words in (({'inference_net': 'every_par'}, 'inference_net every_par: no such method; did you mean'),
                          ({'model': {}}, 'not the weights of resnet8 as --distill every_part deploys it')):
        torch.save({**checkpoint, **change}, tmp_path / 'x.pth')
        with pytest.raises(UserError, match=words):
            load_inference_net(str(tmp_path / 'x.pth'), data, '--evaluate')
    with pytest.raises(SystemExit) as caught:       # as a teacher it could not be asked for features
        call(train_student.main, '--path-t', best, '--dataset', 'digits', '--gpu_id', 'cpu', '--save_dir', tmp_path)
    assert caught.value.code == 2 and 'that --distill every_part deploys' in capsys.readouterr().err


def test_a_schedule_over_the_epochs_keeps_them(run, whole):
    before = {file.name: file.read_bytes() for file in folder_of(whole).iterdir()}
    for epochs in ('1', '3'):
        out = run(whole, '--resume', '--epochs', epochs, code=2)
        assert f'--epochs {epochs}: ' in out and 'follows a schedule over 2 epochs' in out and out.count('error') == 1
    assert {file.name: file.read_bytes() for file in folder_of(whole).iterdir()} == before


def test_a_state_from_before_a_flag(run, tmp_path, whole):
    """Taken with the flag's default, and refused with another value."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    last = folder_of(tmp_path) / 'last.pth'
    state = load_checkpoint(str(last), '')
    del state['identity']['every_margin']
    torch.save(state, last)
    assert 'every_margin 0.5, now 0.1' in run(tmp_path, '--resume', '--every_margin', '0.1', code=2)
    run(tmp_path, '--resume')


@pytest.mark.slow
def test_two_processes(run, tmp_path, whole):
    """Two train as one; that both hold the same weights, test_distributed shows for this method too."""
    run(tmp_path, '--multiprocessing-distributed', '--gpu_id', 'cpu,cpu', '--dist-url',
        f'tcp://127.0.0.1:{free_port()}', '--sync_bn', alone=True)
    two, one = (json.loads((folder_of(save) / 'history.json').read_text()) for save in (tmp_path, whole))
    assert len(two) == 2 and two[1]['train']['ce'] < two[0]['train']['ce']
    assert two[0]['train_loss'] == pytest.approx(one[0]['train_loss'], rel=1e-3)


def test_dali_has_one_view(run, tmp_path):
    out = run(tmp_path, '--dataset', 'imagenet', '--dali', 'cpu', code=2)
    assert '--dali cpu: gives one view of an image, but --distill every_part trains on 2; leave --dali out' in out
    assert not list(tmp_path.iterdir())


def test_float16_scales_gradients(run, tmp_path):
    out = run(tmp_path, '--amp', 'float16', code=2)
    assert '--amp float16: scales the gradients' in out and 'give --amp bfloat16' in out
    assert not list(tmp_path.iterdir())


def test_help_and_weights(every_part, capsys):
    with pytest.raises(SystemExit):
        student_options(['--help'])
    out = capsys.readouterr().out
    assert re.search('--distill every_part, EveryPart:\n +--every_margin', out)
    assert re.search('--distill crd, CRD:(\n +.*)*--nce_k', out) and 'feat_dim' in out
    opt = student_options(['--path-t', 'x', '--distill', 'every_part', '-a', '0'])
    assert (opt.gamma, opt.alpha, opt.beta, opt.every_margin) == (0.5, 0.0, 2.0, 0.5)
    opt = student_options(['--path-t', 'x', '--distill', 'every_part', '--dataset', 'imagenet', '-r', '1'])
    assert (opt.gamma, opt.beta) == (1.0, 3.0)


def test_a_flag_of_two_methods(every_part, monkeypatch):
    """Added alike it is shared; added differently, or with the name of a script's own, it is a programmer's error."""
    alike = {'type': number(float), 'default': 0.5}
    for settings, wrong in ((alike, None), ({**alike, 'default': 1.0}, 'other settings'), (None, 'other settings'),
                            ({'default': 0.5}, 'other settings')):
        class Other(every_part.EveryPartDistiller):
            @classmethod
            def add_arguments(cls, add, settings=settings):
                add('--every_margin' if settings else '--epochs', **(settings or {}))
        monkeypatch.setitem(distiller_dict, 'other', Other)
        if wrong:
            with pytest.raises(ValueError, match=wrong):
                student_options(['--path-t', 'x'])
        else:
            assert student_options(['--path-t', 'x']).every_margin == 0.5


@pytest.mark.parametrize('method', ['kd', 'dkd'])
def test_a_transform_goes_with_every_loss_on_logits(every_part, method):
    """The soft labels of the base and of the method see the transformed logits and temperature, and it learns."""
    distiller, loader, _ = build(method, learnt_temperature=True, alpha=1.0)
    images, target, index = next(iter(loader))
    distiller.begin_epoch(3, 5)
    losses, logits = distiller(images, target, index)
    temperature = 4 + 3 * 0.5
    assert losses['kl'].item() == pytest.approx(
        distill_kl(logits, distiller.teacher(images), temperature).item(), rel=1e-5)
    losses['method' if method == 'dkd' else 'kl'].backward()
    theta = distiller.logit_transforms[0].theta
    assert theta.grad.abs() > 0 and any(p is theta for p in distiller.parameters())
    plain, _, _ = build(method, alpha=1.0)
    assert not len(plain.logit_transforms) and not plain.scheduled_over_epochs

    class Scheduled(every_part.LearntTemperature):
        scheduled_over_epochs = True
    before = list(transforms)
    transforms[:] = [*before[:-1], Scheduled]
    assert build(method, learnt_temperature=True)[0].scheduled_over_epochs
    transforms[:] = before


def test_schedules(every_part):
    """The weight of the method follows begin_epoch; nothing is compiled again for it."""
    distiller, loader, opt = build('every_part')
    images, target, index = next(iter(loader))
    assert images.shape == (2, 8, 3, 16, 16)
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward
    forward = torch.compile(distiller.forward, backend=backend)
    for epoch in (1, 2, 4):
        distiller.begin_epoch(epoch, 4)
        losses, _ = forward(images, target, index)
        want = 0.5 * losses['ce'] + losses['kl'] + 2.0 * epoch / 4 * losses['method']
        assert losses['loss'].item() == pytest.approx(want.item(), rel=1e-5)
    first = len(compiled)
    distiller.begin_epoch(3, 4)
    forward(images, target, index)
    assert len(compiled) == first >= 1


def test_separate_backward_passes(every_part):
    """Each optimiser's buffer holds its own gradient, the sum over the views of the terms."""
    distiller, loader, opt = build('every_part')
    opt = SimpleNamespace(**vars(opt))
    optimizer = distiller.make_optimizer(0.0, opt)
    images, target, index = next(iter(loader))
    losses, _ = distiller(images, target, index)
    assert losses['ce'].item() == pytest.approx(sum(
        F.cross_entropy(distiller.student(view), target) for view in images).item(), rel=1e-4)
    weight = distiller.student.fc.weight
    task, = torch.autograd.grad(0.5 * losses['ce'], weight, retain_graph=True)
    rest, = torch.autograd.grad(losses['loss'] - 0.5 * losses['ce'], weight, retain_graph=True)
    distiller.backward(losses, optimizer)
    optimizer.step()
    assert torch.allclose(optimizer.state[weight]['task'], task) and task.abs().sum() > 0
    assert torch.allclose(optimizer.state[weight]['distillation'], rest, atol=1e-7) and not torch.equal(task, rest)
    averages = train_epoch(1, loader, distiller, optimizer, opt)
    assert {'loss', 'ce', 'kl', 'method', 'top1'} <= set(averages)


def test_compiled(every_part):
    """Two views, two backward passes and a schedule in the compiled step."""
    found = []
    for compiled in (False, True):
        distiller, loader, opt = build('every_part', learnt_temperature=True)
        if compiled:
            compile_forward(distiller, 8, CPU)
        optimizer = distiller.make_optimizer(0.001, opt)
        found.append([])
        for epoch in (1, 2):
            distiller.begin_epoch(epoch, 2)
            found[-1].append(train_epoch(epoch, loader, distiller, optimizer, opt)['loss'])
    assert found[1] == pytest.approx(found[0], rel=1e-5) and found[1] != found[0]


@pytest.mark.parametrize('method', distiller_dict)
def test_the_teacher_gives_what_is_declared(method):
    """And no more, so that a method that reads anything else fails wherever it is trained."""
    distiller, loader, _ = build(method)
    images = first_view(next(iter(loader))[0])
    out = distiller.teacher_outputs(images)
    assert {name for name in Outputs._fields if getattr(out, name) is not None} == {'logits', *distiller.spec.needs}
    assert not any(value.requires_grad for value in (out.logits, *(out.feats or [])))


@pytest.mark.parametrize('method', distiller_dict)
def test_names(method):
    spec = distiller_dict[method].spec
    assert distiller_dict[method].__name__ == f'{spec.title.replace("-", "")}Distiller' and spec.uses and spec.paper
    assert {*spec.needs} <= {*Outputs._fields}


def test_no_method_name_elsewhere():
    """A method lives in its own file: the rest of the code does not know any by name."""
    # A user's method may be called as a field of Outputs.
    names = '|'.join(name for name in distiller_dict if name not in ('every_part', *Outputs._fields))
    folders = ('dataset', 'helper', 'cpu_kernels', 'models', 'benchmarks', 'scripts', '.')
    for file in (file for folder in folders for file in (ROOT / folder).glob('*.py')):
        for place, line in enumerate(file.read_text().splitlines(), start=1):
            found = re.search(rf'''['"]({names})['"]|--distill ({names})\b|distill == ''', line)
            assert not found, f'{file.relative_to(ROOT)}:{place}: {line.strip()}'


def test_a_declaration_is_checked():
    with pytest.raises(TypeError, match='NoSpec: declare spec = Spec'):
        class NoSpec(Distiller):
            pass

    for name in ('backward', 'make_optimizer', 'student_outputs', 'inference_net'):
        with pytest.raises(TypeError, match=f'Silent overrides {name}, but its spec does not declare it'):
            type('Silent', (Distiller,), {'spec': Spec(title='', paper='', uses=''), name: lambda self: None})

    class OneView(Distiller):
        spec = Spec(title='', paper='', uses='', views=('weak', 'strong'))
    with pytest.raises(ValueError, match='OneView: several views in spec and the mixin MultiView go together'):
        check_declaration(OneView)


def test_a_checkpoint_has_all_buffers_of_the_method():
    """Also one whose name begins as the average's."""
    distiller, _, _ = build('kd')
    distiller.register_buffer('average_map', torch.ones(2))
    assert set(distiller.checkpoint()['distiller']) == {'average_map'}
