"""--grad_checkpointing changes no loss, gradient, running statistic or weight, to the bit."""
import copy

import pytest
import torch
from conftest import CPU, NETS, ROOT, SIMILAR_NETS, assert_same, build, outcome
from torch.utils._pytree import tree_leaves

import train_student
import train_teacher
from benchmarks.__main__ import main as benchmark
from distiller_zoo import distiller_dict
from helper.compile import TorchCompiled, replace_forward
from helper.device import Precision
from models import find, model_dict
from models.grad_checkpointing import turn_on_grad_checkpointing

FILE = ROOT / 'tests' / 'fixtures' / 'blocks.py'

LIBRARY = [pytest.param('timm:resnet10t', marks=pytest.mark.slow),
           pytest.param('timm:efficientnet_b0,drop_rate=0.2,drop_path_rate=0.2', marks=pytest.mark.slow),
           'timm:vit_tiny_patch16_224,depth=2,embed_dim=24,drop_path_rate=0.5',
           pytest.param('timm:convnext_atto,drop_path_rate=0.5', marks=pytest.mark.slow)]


def results(net, size):
    """All outputs of a training step, gradients and buffers, of features and of pre-activations if it has them."""
    torch.manual_seed(1)
    images, found = torch.randn(2, 3, size, size), []
    net.train()
    for preact in (False, True):
        try:
            outputs = tree_leaves(net.outputs(images, preact))
        except NotImplementedError:
            continue
        sum((out * torch.randn(out.shape)).mean() for out in outputs).backward()
        found += outputs
    return [*found, *(p.grad for p in net.parameters()), *net.buffers()]


def assert_net_is_the_same(net, size):
    other = copy.deepcopy(net)
    turn_on_grad_checkpointing(other, size, 'x')
    for one, two in zip(results(net, size), results(other, size), strict=True):
        assert (one is None and two is None) or torch.equal(one, two)


@pytest.mark.parametrize('name', NETS)
def test_nets(name):
    torch.manual_seed(0)
    assert_net_is_the_same(model_dict[name](num_classes=10), 32 if name in SIMILAR_NETS else 8)


@pytest.mark.parametrize('name', LIBRARY)
def test_nets_of_timm(name):
    pytest.importorskip('timm')
    torch.manual_seed(0)
    assert_net_is_the_same(find.build(name, 10, 32), 32)


def step(distiller, batch, opt, amp=None):
    """Losses, gradients and the student's buffers of a training step."""
    torch.manual_seed(2)
    optimizer = distiller.make_optimizer(0.01, opt)
    optimizer.zero_grad()
    with Precision(amp, CPU).autocast():
        losses, _ = distiller(*batch)
    if distiller.own_backward:
        distiller.backward(losses, optimizer)
    else:
        losses['loss'].backward()
    gradients = {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}
    return [{**losses}, gradients, {name: buffer.clone() for name, buffer in distiller.student.named_buffers()}]


@pytest.mark.parametrize('method, changes', [
    *((name, {}) for name in distiller_dict), ('dkd', {'opt': 'dot', 'dot_delta': 0.075}), ('rkd', {'beta': 'auto'}),
    ('kd', {'amp': 'bfloat16'}), ('kd', {'freeze_epochs': 1})])
def test_methods(method, changes):
    """A step in each stage, without and with it, from the same state."""
    distiller, loader, opt = build(method, 'resnet8', batch=4, size=8, **changes)
    batch = next(iter(loader))
    turn_on_grad_checkpointing(distiller.student, 8, 'x')
    for _ in range(1 + distiller.in_first_stage):
        distiller.begin_epoch(1, 2)
        distiller.train()
        before, found = copy.deepcopy(distiller.state_dict()), []
        for distiller.student.grad_checkpointing in (False, True):
            distiller.load_state_dict(before)
            found.append(step(distiller, batch, opt, changes.get('amp')))
        for one, other in zip(*found, strict=True):
            assert_same(one, other)
        if distiller.in_first_stage:
            distiller.end_first_stage()


@pytest.mark.slow
def test_compiled_by_torch():
    """As on a GPU: the same up to rounding."""
    found = []
    for compiled in (True, False):
        distiller, loader, opt = build('rkd', batch=4)
        turn_on_grad_checkpointing(distiller.student, 16, 'x')
        if compiled:
            replace_forward(distiller, 4, TorchCompiled(distiller, CPU))
        distiller.train()
        found.append(step(distiller, next(iter(loader)), opt))
    for one, other in zip(*found, strict=True):
        for name, value in one.items():
            assert torch.allclose(value, other[name], rtol=1e-3, atol=1e-5), name


def test_a_resumed_run(call, small, teacher, tmp_path, interrupt):
    """Stopped within an epoch, and resumed: it ends as the run without the flag."""
    def run(save, *flags):
        call(train_student.main, '--path-t', teacher, '--save_dir', save, *small, *flags)
    run(tmp_path / 'without')
    interrupt(1)
    with pytest.raises(SystemExit):
        run(tmp_path / 'with', '--grad_checkpointing')
    run(tmp_path / 'with', '--grad_checkpointing', '--resume', 'auto')
    assert_same(outcome(tmp_path / 'with'), outcome(tmp_path / 'without'))


@pytest.mark.parametrize('flags, words', [
    pytest.param(['--model', 'torchvision:shufflenet_v2_x0_5'],
                 '--grad_checkpointing: --model torchvision:shufflenet_v2_x0_5 has no blocks that can run again',
                 marks=pytest.mark.slow),
    (['--model', f'{FILE}:without_blocks'], ':without_blocks has no blocks that can run again'),
    (['--model', 'resnet8', '--compile'], '--compile: on a CPU it rewrites whole nets'),
    (['--model', 'resnet8', '--evaluate', 'x.pth'], '--grad_checkpointing: has no effect with --evaluate')])
def test_refused(call, small, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as caught:
        call(train_teacher.main, *small, '--save_dir', tmp_path, '--grad_checkpointing', *flags)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and words in error and error.count('\n') == 1 and not [*tmp_path.iterdir()]


def test_a_net_of_a_users_file():
    torch.manual_seed(0)
    assert_net_is_the_same(find.build(f'{FILE}:with_blocks', 10, 16), 16)


@pytest.mark.slow
def test_the_benchmark(call, capfd):
    """The peak of a step falls; another run measures the same bytes."""
    rows = []
    for _ in range(2):
        call(benchmark, 'memory', '--pair', 'resnet8,resnet8,kd', '--batch_size', 8, '--pixels', 32, '--rounds', 1,
             '--gpu_id', 'cpu')
        rows.append(capfd.readouterr().out.splitlines()[-1].split()[:4])
    assert rows[0] == rows[1] and rows[0][0] == 'kd' and float(rows[0][3]) < 0.9
