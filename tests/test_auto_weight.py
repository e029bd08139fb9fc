"""-b auto: the weight is the right one, in every method, in sums, after a resume, compiled and in 16 bits."""
import json
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU, assert_same, build, outcome
from torch import nn

import train_student
from analysis.published import non_default_options
from distiller_zoo import auto_weight, distiller_dict, get_method
from distiller_zoo.auto_weight import AutoWeights
from helper.compile import compile_forward
from helper.device import Precision
from helper.errors import UserError
from helper.loops import train_epoch
from helper.run import Run
from options import student_options

REFUSED = ('kd', 'fsp', 'abound', 'ctkd')       # no loss of their own, or only in the first stage


class Toy(nn.Module):
    """y = b * a * x, with a norm between the two layers that has no matrix."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(1, 1, False), nn.LayerNorm(1), nn.Linear(1, 1)
        self.first.weight.data.fill_(2)
        self.last.weight.data.fill_(3)

    def forward(self, x):
        hidden = self.first(torch.tensor([[x]]))
        return hidden, self.last(hidden + 0 * self.norm(hidden))


def test_a_case_computed_by_hand(monkeypatch, capsys):
    """With x: hidden 2x, output 6x. The cross-entropy is 12 y, whose gradient is 12 * 2x at the last layer, and 12 * 3x
    at the first."""
    monkeypatch.setattr(auto_weight, 'STEPS', 4)
    net, weights = Toy(), AutoWeights(['logits', 'features'])
    # Losses factor * y and factor * hidden: ratios 12 / factor at the last layer, 12 * 3 / factor at the first.
    for factor, (on_logits, on_features) in ((4.0, (3, 9)), (1.0, (7.5, 22.5)), (0.0, (7.5, 22.5)), (2.0, (6, 18))):
        hidden, y = net(0.5)
        weights.measure({'ce': 12 * y.sum(), 'logits': factor * y.sum(), 'features': factor * hidden.sum()}, net)
        assert weights.by_name() == pytest.approx({'logits': on_logits, 'features': on_features})
    assert weights.layers == {'logits': net.last.weight, 'features': net.first.weight} and not weights.is_measuring
    assert capsys.readouterr().out.splitlines() == ['-b auto for logits: 6 after 4 batches',
                                                    '-b auto for features: 18 after 4 batches']


def test_a_loss_without_gradient(monkeypatch):
    monkeypatch.setattr(auto_weight, 'STEPS', 1)
    net = Toy()
    y = net(0.5)[1].sum()
    with pytest.raises(UserError, match='^-b auto: the loss had no finite gradient in 1 batches; give a number$'):
        AutoWeights(['method']).measure({'ce': y, 'method': 0 * y}, net)
    with pytest.raises(UserError, match='^-b auto for rkd: no layer of the student learns from both'):
        AutoWeights(['rkd']).measure({'ce': y, 'rkd': net.norm.bias.sum()}, net)


@pytest.mark.parametrize('method', [name for name, method in distiller_dict.items()
                                    if name not in REFUSED and method.spec.learns_classes])
def test_every_method(method):
    """After a step the gradient of the weighted loss is that of the cross-entropy, on a layer of at least a matrix."""
    student_options(['--path-t', 'x', '--distill', method, '-b', 'auto'])
    teacher = 'resnet8' if method == 'kdsvd' else 'resnet14'
    distiller, loader, _ = build(method, teacher, beta='auto')
    if distiller.in_first_stage:
        distiller.end_first_stage()
    distiller.train()
    losses, _ = distiller(*next(iter(loader)))
    layer = distiller.auto_weights.layers['method']
    task, = torch.autograd.grad(losses['ce'], layer, retain_graph=True)
    own, = torch.autograd.grad(distiller.weighted(losses)['method'] / distiller.schedule_factor, layer)
    assert own.norm().item() == pytest.approx(task.norm().item(), rel=1e-3) and layer.dim() > 1
    if 'logits' in get_method(method).spec.uses:
        assert layer is distiller.student.fc.weight or method == 'ofa'


def trained(method, epochs=2, compiled=False, amp=None, beta='auto', **changes):
    """(distiller, optimiser) after epochs of three batches."""
    distiller, loader, opt = build(method, beta=beta, **changes)
    if compiled:
        compile_forward(distiller, 8, CPU)
    optimizer = distiller.make_optimizer(0.01, opt)
    for epoch in range(1, epochs + 1):
        distiller.begin_epoch(epoch, epochs)
        train_epoch(epoch, loader, distiller, optimizer, opt, precision=Precision(amp, CPU))
    return distiller, optimizer


@pytest.fixture
def three_steps(monkeypatch):
    """Three batches are measured, those of an epoch in `trained` and of one of `small`."""
    monkeypatch.setattr(auto_weight, 'STEPS', 3)


def test_sums(three_steps, capsys):
    distiller, _ = trained('similarity+kd+dkd', beta=['auto', 0.5, 'auto'])
    found = distiller.measured_weights()
    assert found.keys() == {'beta_similarity', 'beta_dkd'} and distiller.betas == {'similarity': 1, 'kd': 0.5, 'dkd': 1}
    lines = [f'-b auto for {name}: {found[f"beta_{name}"]:.4g} after 3 batches' for name in ('similarity', 'dkd')]
    assert capsys.readouterr().out.splitlines()[-2:] == lines
    weighted = distiller.weighted({name: torch.ones(()) for name in ('ce', 'similarity', 'kd', 'dkd')})
    warmed_up = distiller.parts['dkd'].schedule_factor
    assert [value.item() for value in map(torch.as_tensor, weighted.values())] == pytest.approx(
        [1, found['beta_similarity'], 0.5, found['beta_dkd'] * warmed_up.item()]) and warmed_up == 0.1


def test_the_weight_is_fixed_after_the_first_steps(three_steps):
    """And it is the same compiled up to rounding, nearly the same in 16 bits, with two backward passes, and
    before a warm-up."""
    first, _ = trained('dkd', epochs=1)
    weight = first.measured_weights()['beta']
    assert trained('dkd', epochs=3)[0].measured_weights()['beta'] == weight
    assert trained('dkd', epochs=2, compiled=True)[0].measured_weights()['beta'] == pytest.approx(weight, rel=1e-5)
    assert trained('dkd', epochs=1, amp='bfloat16')[0].measured_weights()['beta'] == pytest.approx(weight, rel=0.05)
    distiller, optimizer = trained('similarity', opt='dot', dot_delta=0.09)
    assert distiller.measured_weights()['beta'] > 0
    assert any(len(state) == 2 for state in optimizer.state.values())       # a momentum for each gradient


def test_a_resumed_run(call, small, teacher, tmp_path, monkeypatch, interrupt, capsys):
    """Stopped within the measured steps, after them, and ended: as without a stop, to the bit."""
    monkeypatch.setattr(auto_weight, 'STEPS', 4)

    def run(save, *flags):
        call(train_student.main, '--path_t', teacher, *small, '--epochs', 2, '--learning_rate', 0.01, '--distill',
             'similarity', '-b', 'auto', '--save_dir', save, *flags)
    run(tmp_path / 'whole')
    for steps in (2, 3):
        interrupt(steps)
        with pytest.raises(SystemExit):
            run(tmp_path / 'parts', '--resume', 'auto')
    run(tmp_path / 'parts', '--resume', 'auto')
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))
    folder = next(tmp_path.glob('whole/student_model/*'))
    assert '_a:1.0_b:auto_1' in folder.name and json.loads((folder / 'parameters.json').read_text())['beta'] == 'auto'
    last = json.loads((folder / 'history.json').read_text())[-1]['train']['beta']
    assert capsys.readouterr().out.count(f'-b auto: {last:.4g} after 4 batches\n') == 2     # of the whole, of the parts


@pytest.mark.parametrize('flags, words', [
    *((f'--distill {method} -b auto', f'-b auto: --distill {method} has no loss of its own to weight') for method in
      REFUSED),
    ('--distill dkd -b auto --freeze_epochs 1', '-b auto: compares gradients on a layer of the student, which '
                                                '--freeze_epochs 1 freezes; give a number'),
    ('--distill rkd+dkd -b auto', '-b auto: --distill rkd+dkd adds 2 losses; give a weight for each, as -b 1.0,1.0'),
    ('--distill dkd -b auto,1', '-b auto,1.0: --distill dkd has one loss; give one weight'),
    ('--distill dkd -b Auto', '-b/--beta: Auto: give a number or auto, or several with commas, as 45,0.8'),
    ('--distill dkd -a auto', '-a/--alpha: auto: give a number')])
def test_refused(flags, words):
    with pytest.raises(UserError) as caught:
        student_options(['--path-t', 'x', *flags.split()])
    assert str(caught.value).startswith(words)


def test_options_and_published_figures():
    """A mixed list is read; --estimate takes the published weight; no published figure has this weight."""
    def beta(*flags):
        return student_options(['--path-t', 'x', '--distill', 'rkd+crd', *flags]).beta
    assert beta('-b', 'auto,0.8') == ['auto', 0.8] and beta('-b', 'auto,auto', '--estimate') == [1, 0.8]
    parameters = vars(student_options(['--path-t', 'x', '--distill', 'rkd']))
    assert non_default_options(parameters, parameters) == {}
    assert non_default_options(parameters, {**parameters, 'beta': 'auto'}) == {'beta': 'auto'}


@pytest.mark.parametrize('beta, advice', [
    ('auto', 'lower --learning_rate, or give a number as --beta'),
    (['auto', 0.8], 'lower --learning_rate, or give a number as --beta'),
    (1.0, 'lower --learning_rate or --beta'), (0.0, 'lower --learning_rate')])
def test_advice_when_the_loss_diverges(beta, advice):
    assert Run.advice.fget(SimpleNamespace(opt=SimpleNamespace(beta=beta), stage='train', has_saved=False)) == advice


def test_a_small_gradient_through_float16():
    """1e-9 rounds to zero in 16 bits."""
    layer = nn.Parameter(torch.ones(2, 2))
    loss = (layer.half().float() * 1e-9).sum()
    assert auto_weight.gradient_norm(loss, layer).item() == pytest.approx(2e-9, rel=1e-3)
