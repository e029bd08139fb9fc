"""Rewritten nets equal the plain ones, which stay unchanged; our batch norm equals torch's."""
import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, build
from torch import nn
from torch.utils._pytree import tree_leaves

from cpu_kernels import batchnorm, fuse
from cpu_kernels.build import library
from helper.compile import compile_forward
from models import model_dict
from models.fold import fold_batchnorm

try:
    library()
except OSError as missing:
    pytest.skip(f'kernels: {missing}', allow_module_level=True)

SLOW = ('resnet34x4', 'vgg11_imagenet', 'vgg13_imagenet', 'wrn_50_2', 'ResNet18Double', 'resnext50_32x4d', 'vgg19',
        'ResNet50', 'ResNet50_cifar', 'shufflenet_v2_x2_0')


def random(*shape):
    return torch.randn(shape).to(memory_format=torch.channels_last)


def error(found, exact):
    return ((found - exact).abs().max() / exact.abs().max().clamp(min=1e-20)).item()


# Batch norm

@pytest.mark.parametrize('channels', [8, 16, 48, 64, 256])
@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('relu', [False, True])
def test_batch_norm(channels, residual, relu):
    """Output, gradients and running statistics of two steps, compared with float64."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    exact = copy.deepcopy(norm).double()
    for _ in range(2):
        x = (3 + random(4, channels, 9, 7)).requires_grad_()
        added = random(4, channels, 9, 7).requires_grad_() if residual else None
        y = batchnorm.batch_norm(norm, x, added, relu)
        assert y.is_contiguous(memory_format=torch.channels_last)
        x64, added64 = (None if t is None else t.detach().double().requires_grad_() for t in (x, added))
        y64 = exact(x64) + (added64 if residual else 0)
        y64 = F.relu(y64) if relu else y64
        grad = random(*x.shape)
        y.backward(grad)
        y64.backward(grad.double())
        pairs = [(y, y64), (x.grad, x64.grad)] + ([(added.grad, added64.grad)] if residual else [])
        pairs += [(p.grad, q.grad) for p, q in zip(norm.parameters(), exact.parameters(), strict=True)]
        pairs += list(zip(norm.buffers(), exact.buffers(), strict=True))
        assert all(error(one, other) < 2e-6 for one, other in pairs)
    assert norm.num_batches_tracked == 2
    with torch.no_grad():
        y, y64 = norm.eval()(x), exact.eval()(x64)
        assert error(batchnorm.batch_norm(norm, x), y64) < 2e-6 and error(y, y64) < 2e-6


def test_a_large_mean_and_a_small_variance():
    torch.manual_seed(0)
    norm, x = nn.BatchNorm2d(16), 1000 + 0.01 * random(64, 16, 8, 8)
    exact = nn.BatchNorm2d(16).double()
    y, y64 = batchnorm.batch_norm(norm, x), exact(x.double())
    assert error(norm.running_var, exact.running_var) < 1e-6 and error(y, y64) < 5e-3      # a float of 1000 is as exact


def test_one_value_a_channel():
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        batchnorm.batch_norm(nn.BatchNorm2d(16), random(1, 16, 1, 1))
    norm = nn.BatchNorm2d(16)
    assert error(batchnorm.batch_norm(norm, x := random(3, 16, 1, 1)), nn.BatchNorm2d(16)(x)) < 1e-5


def test_batch_norm_is_the_same_with_any_number_of_threads():
    threads, x, found = torch.get_num_threads(), random(5, 32, 31, 33).requires_grad_(), []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        y = batchnorm.batch_norm(nn.BatchNorm2d(32), x, relu=True)
        found.append([y, *torch.autograd.grad(y.square().sum(), x)])
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize('norm, suits', [
    (nn.BatchNorm2d(32), True), (nn.BatchNorm2d(24), False), (nn.BatchNorm2d(16, affine=False), False),
    (nn.BatchNorm2d(16, track_running_stats=False), False), (nn.BatchNorm2d(16, momentum=None), False),
    (nn.SyncBatchNorm(16), False)])
def test_norms_that_suit(norm, suits):
    assert batchnorm.supports(norm) == suits


# Nets

def both(net, images, preact, train):
    """Outputs, gradients and buffers of a plain and of a rewritten copy; whether anything was rewritten."""
    found = []
    for fused in (False, True):
        one = copy.deepcopy(net).train(train)
        rewritten = fuse.Rewritten(*([one] if fused else []))
        torch.manual_seed(1)        # dropout
        with rewritten.in_use(), torch.set_grad_enabled(train):
            outputs = tree_leaves(one.outputs(images, preact))
        grads = []
        if train:
            torch.manual_seed(2)
            loss = sum((o * torch.randn(o.shape)).mean() for o in outputs)
            grads = torch.autograd.grad(loss, list(one.parameters()), allow_unused=True)
        found.append([*outputs, *one.buffers(), *(g for g in grads if g is not None)])
    return *found, bool(rewritten.methods)


def assert_near(found, exact):
    """Outputs and statistics are equal up to rounding. A few gradients differ more, because rounding changes the sign
    of a ReLU's input; gradients whose exact value is zero are pure rounding errors."""
    largest = max(t.abs().max() for t in exact)
    for one, other in zip(found, exact, strict=True):
        assert one.shape == other.shape
        assert (one - other).double().norm() <= 0.2 * other.double().norm() + 1e-4 * largest


@pytest.mark.parametrize('name', [name for name in model_dict if name not in SLOW])
def test_rewritten_nets(name):
    """All outputs, gradients and running statistics, in training and of a folded and frozen net."""
    torch.manual_seed(0)
    size = 64 if 'imagenet' in name.lower() else 32
    net = model_dict[name](num_classes=10).to(memory_format=torch.channels_last)
    images = random(4, 3, size, size)
    state = list(net.state_dict())
    plain, fast, rewritten = both(net, images, False, True)
    assert rewritten and list(net.state_dict()) == state
    assert_near(fast, plain)
    outputs = sum(t.requires_grad for t in fast)
    assert all(error(a, b) < 1e-3 for a, b in zip(fast[:outputs], plain[:outputs], strict=True))
    fold_batchnorm(net.eval().requires_grad_(False), size)
    for preact in (False, True):
        try:
            plain, fast, _ = both(net, images, preact, False)
        except NotImplementedError:
            continue
        for one, other in zip(fast, plain, strict=True):
            assert error(one, other) < 1e-4


@pytest.mark.parametrize('name', ['resnet8', 'wrn_16_1', 'vgg8'])
def test_preactivations_in_training(name):
    torch.manual_seed(0)
    net = model_dict[name](num_classes=10).to(memory_format=torch.channels_last)
    plain, fast, rewritten = both(net, random(4, 3, 32, 32), True, True)
    assert rewritten
    assert_near(fast, plain)


@pytest.mark.parametrize('name, norms, convolutions', [('resnet8', 9, 4), ('wrn_16_1', 13, 10)])
def test_how_much_is_fused(name, norms, convolutions):
    """All norms and supported 3x3 convolutions are fused; after folding, so are convolutions before a ReLU or a sum. No
    ReLU and no sum is left."""
    net = model_dict[name](num_classes=10)
    for frozen in (False, True):
        made = fuse.rewrite(net, type(net).outputs)
        kinds = [type(m) for m in made.modules()]
        if not frozen:
            assert (kinds.count(fuse.Norm), kinds.count(fuse.Convolution)) == (norms, convolutions)
        assert not any('relu' in str(node.target) or 'add' in str(node.target) for node in made.graph.nodes)
        fold_batchnorm(net, 32)


class Odd(nn.Module):
    """Nets in which a value has another reader, or is overwritten, so that it must not be fused."""

    def __init__(self, kind):
        super().__init__()
        self.bn, self.kind = nn.BatchNorm2d(16), kind

    def outputs(self, x, preact=False):
        x = x * 1
        y = self.bn(x)
        if self.kind == 'twice':
            return F.relu(y) + y
        if self.kind == 'written':
            x.relu_()
            return y + x
        if self.kind == 'itself':
            return y + y
        if self.kind == 'number':
            return F.relu(y + 1)
        return F.relu(y) if x.shape[0] > 2 else y


@pytest.mark.parametrize('kind', ['twice', 'written', 'itself', 'number', 'shape'])
def test_odd_nets(kind):
    torch.manual_seed(0)
    net, images = Odd(kind), random(4, 16, 4, 4)
    plain, fast, rewritten = both(net, images, False, kind != 'written')
    assert all(error(a.double(), b.double()) < 1e-5 for a, b in zip(fast, plain, strict=True))
    assert rewritten == (kind != 'shape')


def test_a_net_with_hooks_stays():
    net, calls = model_dict['resnet8'](num_classes=10), []
    net.layer1[0].bn1.register_forward_hook(lambda *_: calls.append(1))
    with fuse.Rewritten(net).in_use():
        net(random(2, 3, 32, 32))
    assert calls == [1]


def test_the_parts_of_a_method():
    """SemCKD's regressors are rewritten; the gradients equal those of the plain step."""
    found = []
    for compiled in (False, True):
        distiller, loader, _ = build('semckd', batch=8)
        distiller.to(memory_format=torch.channels_last)
        if compiled:
            compile_forward(distiller, 8, CPU)
        losses, _ = distiller.train()(*next(iter(loader)))
        losses['loss'].backward()
        found.append([losses['loss'], *(p.grad for p in distiller.parameters() if p.grad is not None)])
        methods = fuse.Rewritten(distiller).methods
    assert sum(isinstance(module, nn.Sequential) for module, *_ in methods) == 9
    assert all(error(a, b) < 1e-3 for a, b in zip(*found, strict=True))


def test_outside_a_step_nothing_changes():
    """Evaluation is bit-identical, and the exported net has no fused module."""
    distiller, loader, opt = build('kd', size=32)
    net, images = distiller.student, random(4, 3, 32, 32)
    state, evaluated = copy.deepcopy(net.state_dict()), net.eval()(images)
    compile_forward(distiller, opt.batch_size, CPU)
    distiller.train()(*next(iter(loader)))
    net.load_state_dict(state)
    assert torch.equal(net.eval()(images), evaluated)
    targets = {str(node.target) for node in torch.export.export(net, (images,)).graph.nodes}
    assert any('conv2d' in target for target in targets) and not any('fused' in target for target in targets)


def test_a_copy_is_its_own():
    net, images = model_dict['resnet8'](num_classes=10), random(4, 3, 32, 32)
    compile_forward(net.train(), 4, CPU)
    before = net(images)
    other = copy.deepcopy(model_dict['resnet8'](num_classes=10))
    rewritten = fuse.Rewritten(net)
    with rewritten.in_use():
        other.load_state_dict(net.state_dict())
    assert error(other(images), before) < 1e-4 and 'outputs' not in net.__dict__
