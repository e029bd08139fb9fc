"""--freeze_epochs, --layer_decay and --backbone_lr: which parameters learn in an epoch, and at which rate."""
import copy
import signal
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU, assert_same, build, options, outcome
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

import train_student
import train_teacher
from dataset import Data
from distiller_zoo import Vanilla, get_method
from helper.compile import compile_forward
from helper.errors import UserError
from helper.loops import train_epoch
from helper.optim import adjust_learning_rate
from helper.run import Run
from models.base import Net
from models.find import build as build_net
from options import student_options, teacher_options

TIMM = 'timm:efficientnet_lite0'
TOKEN = 'timm:deit_tiny_distilled_patch16_224,patch_size=8,embed_dim=24,num_heads=2,depth=2'      # two classifiers


def parsed(*flags):
    """The options of train_teacher.py."""
    return teacher_options(['--model', 'resnet8', *map(str, flags)])


def moved(net, before) -> set:
    """The names of the parameters and buffers that differ from those of a state_dict."""
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize('method', ['kd', 'simkd', 'mlld', 'rkd+crd'])
def test_frozen_epochs(method):
    """Weights and running statistics stay to the bit while the classifier learns; then all learn."""
    distiller, loader, opt = build(method, batch=4, freeze_epochs=1, model_ema=0.9 if method == 'kd' else None)
    if distiller.in_first_stage:
        distiller.end_first_stage()
    learns = {name for name, p in distiller.student.named_parameters() if p.requires_grad}
    optimizer = distiller.make_optimizer(0.01, opt)
    state, before = copy.deepcopy(dict(distiller.state_dict())), copy.deepcopy(dict(distiller.student.state_dict()))
    distiller.begin_epoch(1, 3)
    after_step = distiller.after_step

    def checkpointed():
        distiller.checkpoint()      # of --save_every; it must not change the mode of the student
        after_step()
    distiller.__dict__['after_step'] = checkpointed
    train_epoch(1, loader, distiller, optimizer, opt)
    trained = moved(distiller, state)
    assert moved(distiller.student, before) == ({'fc.weight', 'fc.bias'} if 'fc.weight' in learns else set())
    others = {name for name, p in distiller.named_parameters()
              if p.requires_grad and not name.startswith(('student.', 'parts.rkd'))}
    assert others <= trained
    if distiller.average is not None:
        assert moved(distiller.average.module, before) == {'fc.weight', 'fc.bias'}
    distiller.begin_epoch(2, 3)
    train_epoch(2, loader, distiller, optimizer, opt)
    assert learns <= moved(distiller.student, before) and 'bn1.running_mean' in moved(distiller.student, before)
    assert learns == {name for name, p in distiller.student.named_parameters() if p.requires_grad}


def test_frozen_and_compiled():
    """The kernels for the CPU give the losses of the plain step, in frozen epochs and after them."""
    losses = []
    for compiled in (False, True):
        distiller, loader, opt = build('hint', freeze_epochs=1)
        if compiled:
            compile_forward(distiller, 8, CPU)
        optimizer, losses = distiller.make_optimizer(0.01, opt), [*losses, []]
        for epoch in (1, 2):
            distiller.begin_epoch(epoch, 2)
            losses[-1].append(train_epoch(epoch, loader, distiller, optimizer, opt)['loss'])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[1] != losses[0]


def test_frozen_and_compiled_by_torch():
    """The step is compiled again where the frozen epochs end, so all parameters and running statistics change."""
    net = TwoLayers()
    task, before = Vanilla(net, parsed('--freeze_epochs', 1)), copy.deepcopy(dict(net.state_dict()))
    forward = torch.compile(task.forward, backend='eager')
    for epoch, changed in ((1, {'fc.weight', 'fc.bias'}), (2, {*before})):
        task.begin_epoch(epoch, 2)
        task.train()
        forward(torch.randn(4, 3, 2, 2), torch.arange(4))[0]['loss'].backward()
        task.make_optimizer(0.1, parsed()).step()
        assert moved(net, before) == changed


class TwoLayers(Net):
    """A batch norm and a linear layer."""

    def __init__(self):
        super().__init__()
        self.bn, self.fc = nn.BatchNorm2d(3), nn.Linear(3, 4)

    def stages(self, x, preact=False):
        x = self.bn(x)
        return [x, x], x


SCHEDULES = {'step': ['--lr_decay_epochs', '2,4'], 'cosine': ['--sched', 'cosine', '--min_lr', '0.001'],
             'warm-up': ['--warmup_epochs', 2, '--warmup_lr', '0.01', '--lr_decay_epochs', '2,4']}


@pytest.mark.parametrize('optimiser', ['sgd', 'adamw'])
def test_layer_decay(optimiser):
    """The rate of each parameter is timm's in every epoch; SGD decays all weights, AdamW those that timm decays."""
    net = build_net(TIMM, 4, 32)
    names = {p: name for name, p in net.net.named_parameters()}
    theirs = create_optimizer_v2(net.net, optimiser, lr=0.1, weight_decay=0.05, layer_decay=0.75)
    fixed = {names[p]: group['weight_decay'] for group in theirs.param_groups for p in group['params']}
    assert len({*fixed.values()}) == 2
    for flags in SCHEDULES.values():
        opt = parsed('--opt', optimiser, '--layer_decay', 0.75, '--learning_rate', 0.1, '--weight_decay', 0.05,
                     '--epochs', 6, *flags)
        ours = Vanilla(net, opt).make_optimizer(0.1, opt)
        scheduler, _ = create_scheduler_v2(
            theirs, sched='multistep' if opt.sched == 'step' else opt.sched, num_epochs=6, decay_milestones=[3, 5],
            min_lr=opt.min_lr, decay_rate=0.1, warmup_epochs=opt.warmup_epochs, warmup_lr=opt.warmup_lr)
        for epoch in range(1, 7):
            base = adjust_learning_rate(epoch, ours, opt)
            scheduler.step(epoch - 1)
            rates, wanted = ({names[p]: group['lr'] for group in optimizer.param_groups for p in group['params']}
                             for optimizer in (ours, theirs))
            assert rates == pytest.approx(wanted) and rates['classifier.weight'] == base
        assert len({*rates.values()}) > 10
        decays = {names[p]: group['weight_decay'] for group in ours.param_groups for p in group['params']}
        assert decays == (dict.fromkeys(fixed, 0.05) if optimiser == 'sgd' else fixed)


@pytest.mark.parametrize('method, optimiser', [('hint', 'sgd'), ('hint', 'adamw'), ('kd', 'dot'), ('simkd', 'sgd')])
def test_backbone_lr(method, optimiser):
    """A step of the student's backbone is a tenth as long; the classifier's and the method's layers' are the same."""
    steps = []
    for factor in (1.0, 0.1):
        distiller, loader, opt = build(method, opt=optimiser, dot_delta=0.05, weight_decay=0.0, backbone_lr=factor)
        before = {name: p.detach().clone() for name, p in distiller.named_parameters()}
        optimizer = distiller.make_optimizer(0.1, opt)
        assert adjust_learning_rate(1, optimizer, parsed('--learning_rate', 0.1)) == 0.1
        losses, _ = distiller(*next(iter(loader)))
        if distiller.own_backward:
            distiller.backward(losses, optimizer)
        else:
            losses['loss'].backward()
        optimizer.step()
        steps.append({name: p - before[name] for name, p in distiller.named_parameters()})
    for name, step in steps[1].items():
        is_backbone = name.startswith('student.') and name not in ('student.fc.weight', 'student.fc.bias')
        torch.testing.assert_close(step, steps[0][name] * (0.1 if is_backbone else 1), rtol=1e-3, atol=3e-7)


def test_the_same_optimiser_without_these_flags():
    """One group without a factor, so that states and results are those of before."""
    group, = Vanilla(build_net('resnet8', 4, 32), parsed()).make_optimizer(0.1, parsed()).param_groups
    assert 'lr_scale' not in group and 'initial_lr' not in group


def test_resumed(call, small, tmp_path, monkeypatch):
    """To the bit, from within the last frozen epoch and from within the epoch after it."""
    flags = ['--model', 'resnet8', *small, '--epochs', 4, '--freeze_epochs', 2, '--backbone_lr', 0.1, '--opt', 'adamw',
             '--learning_rate', 0.01]
    call(train_teacher.main, *flags, '--save_dir', tmp_path / 'whole')
    end_step, stops = Run.end_step, [(2, 2), (3, 1)]

    def stopped(self, batches):
        if (self.epoch, self.step) in stops:
            stops.remove((self.epoch, self.step))
            self.signals.on_signal(signal.SIGTERM, None)
        end_step(self, batches)
    monkeypatch.setattr(Run, 'end_step', stopped)
    for _ in range(2):
        with pytest.raises(SystemExit):
            call(train_teacher.main, *flags, '--save_dir', tmp_path / 'parts', '--resume')
    call(train_teacher.main, *flags, '--save_dir', tmp_path / 'parts', '--resume')
    assert not stops
    whole = outcome(tmp_path / 'whole')
    assert_same(outcome(tmp_path / 'parts'), whole)
    assert [one['lr'] for one in whole['history']] == [0.01] * 4


REFUSED = {
    'all epochs': (['--freeze_epochs', 3, '--epochs', 3], '--freeze_epochs 3: --epochs 3 must be more'),
    'too large': (['--layer_decay', 1.5], '1.5'), 'too small': (['--backbone_lr', 0], '0'),
    'negative': (['--freeze_epochs', -1], '-1'),
    'both': (['--layer_decay', 0.7, '--backbone_lr', 0.1], '--layer_decay 0.7: --backbone_lr 0.1 sets the same'),
    'measures': (['--evaluate', 'x', '--layer_decay', 0.7], '--layer_decay: has no effect with --evaluate'),
    'two passes': (['--opt', 'dot', '--freeze_epochs', 1], '--freeze_epochs 1: --opt dot computes its gradients'),
    'no groups': (['--layer_decay', 0.7], '--layer_decay 0.7: the net has no layer groups of timm; give --backbone_lr'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused(case, capsys):
    flags, words = REFUSED[case]
    with pytest.raises((UserError, SystemExit)) as caught:
        opt = student_options(['--path-t', 'x', *map(str, flags)])
        Vanilla(build_net(opt.model_s, 4, 32), opt)
    assert words in f'{caught.value}{capsys.readouterr().err}'


def test_a_refused_net_leaves_nothing(call, teacher, small, tmp_path, capfd):
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, '--path-t', teacher, '--model_s', 'resnet8', *small, '--layer_decay', 0.7,
             '--save_dir', tmp_path / 'save')
    error = capfd.readouterr().err
    assert caught.value.code == 2 and error.count('\n') == 1 and not (tmp_path / 'save').exists()


@pytest.mark.parametrize('flag', ['--freeze_epochs', '--backbone_lr'])
def test_a_net_without_a_classifier(flag):
    class Headless(TwoLayers):
        classifier_name = 'head'
    with pytest.raises(UserError, match=f'{flag} .*: Headless has no layer head; set its classifier_name, so'):
        Vanilla(Headless(), parsed(flag, '0.5' if flag == '--backbone_lr' else 1))


def test_two_classifiers():
    """A transformer with a distillation token: both learn in a frozen epoch, each from its own loss."""
    opt = options('deit', freeze_epochs=1)
    images, target = torch.randn(4, 3, 16, 16), torch.arange(4)
    loader = SimpleNamespace(dataset=None)
    student, teacher = build_net(TOKEN, 4, 16), build_net('resnet8', 4, 16)
    distiller = get_method('deit')(student, teacher, opt, Data(loader, loader, 4, 16, target))
    before = copy.deepcopy(dict(student.state_dict()))
    distiller.begin_epoch(1, 2)
    optimizer = distiller.train().make_optimizer(0.1, opt)
    losses, logits = distiller(images, target)
    torch.testing.assert_close(logits, student.net.head(student.net.forward_features(images)[:, 0]))
    losses['loss'].backward()
    optimizer.step()
    assert moved(student, before) == {'head.weight', 'head.bias', 'head_dist.weight', 'head_dist.bias'}
