"""The Distiller: what it owns, what learns, and what its forward returns, for every method."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, build
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import RepeatedBatch
from dataset.memory import MemoryLoader
from distiller_zoo import DistillKL, Vanilla, distiller_dict, get_method
from helper.errors import UserError
from helper.finite_check import FiniteCheck
from helper.loops import train_epoch, validate
from helper.meter import Meter
from helper.optim import adjust_learning_rate
from helper.records import predicts_one_class, show_evaluation

PAIRS = {       # teacher, student, height of the images
    'same family': ('resnet14', 'resnet8', 16), 'other family': ('wrn_16_1', 'ShuffleV1', 16),
    'extra stage': ('vgg8', 'resnet8', 16), '3 against 4 stages': ('resnet14', 'MobileNetV2', 32)}
EQUAL_CHANNELS = ('fsp', 'kdsvd')       # refuse a pair of nets of other widths


def pairs_of(method):
    """The pairs of nets that differ for a method: one that reads no feature maps learns alike from all of them."""
    spec = get_method(method).spec
    return PAIRS if spec.reads_stages or spec.stages_s or 'map' in spec.needs else ['other family']


@pytest.mark.parametrize('method, pair', [(method, pair) for method in distiller_dict for pair in pairs_of(method)])
def test_two_steps(method, pair):
    """Loss finite, student and trainable part moved, teacher not, in the first stage and after it."""
    teacher, student, size = PAIRS[pair]
    try:
        distiller, loader, opt = build(method, teacher, student, size=size)
    except UserError as error:
        assert method in EQUAL_CHANNELS and pair != 'same family' and 'equal channels' in str(error)
        return
    teacher_before = {k: v.clone() for k, v in distiller.teacher.state_dict().items()}
    batches = [batch for _, batch in zip(range(2), loader, strict=False)]
    moved = set()
    for _ in range(1 + distiller.in_first_stage):
        before = {k: p.detach().clone() for k, p in distiller.named_parameters()}
        optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
        distiller.train()
        for images, target, index in batches:
            losses, logits = distiller(images, target, index)
            assert losses['loss'].isfinite() and (logits is None) == distiller.in_first_stage
            optimizer.zero_grad()
            losses['loss'].backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in distiller.parameters())
            optimizer.step()
        moved |= {k for k, p in distiller.named_parameters() if not torch.equal(p, before[k])}
        if distiller.in_first_stage:
            distiller.end_first_stage()
    # Vectors may stay: a bias before a batch norm has no effect, a small gradient is lost beside a weight of 1.
    still = {k for k, p in distiller.named_parameters() if p.dim() > 1 and p.requires_grad} - moved
    assert not still and 'student.conv1.weight' in moved | {k.replace('conv1.0', 'conv1') for k in moved}
    assert all(torch.equal(v, teacher_before[k]) for k, v in distiller.teacher.state_dict().items())


@pytest.mark.parametrize('method', distiller_dict)
def test_teacher_is_frozen_and_hidden(method):
    distiller, loader, opt = build(method)
    teacher_before = {k: v.clone() for k, v in distiller.teacher.state_dict().items()}
    student_before = {k: v.clone() for k, v in distiller.student.state_dict().items()}
    trainable = {id(p) for p in distiller.parameters()}
    assert not trainable & {id(p) for p in distiller.teacher.parameters()}
    assert not any('teacher' in key for key in distiller.state_dict())
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.001)
    if distiller.in_first_stage:
        distiller.end_first_stage()
    train_epoch(1, loader, distiller, optimizer, opt)
    assert distiller.training and not distiller.teacher.training
    assert all(torch.equal(v, teacher_before[k]) for k, v in distiller.teacher.state_dict().items())
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert not torch.equal(distiller.student.conv1.weight, student_before['conv1.weight'])


def test_total_loss():
    distiller, loader, _ = build('semckd', gamma=0.5, alpha=0.25, beta=2.0)
    images, target, index = next(iter(loader))
    losses, logits = distiller(images, target, index)
    logit_t = distiller.teacher(images)
    assert losses['ce'].item() == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-6)
    assert losses['kl'].item() == pytest.approx(DistillKL(4.0)(logits, logit_t).item(), rel=1e-6)
    want = 0.5 * losses['ce'] + 0.25 * losses['kl'] + 2.0 * losses['method']
    assert losses['loss'].item() == pytest.approx(want.item(), rel=1e-6)


def test_kd_has_no_term_of_its_own():
    distiller, loader, _ = build('kd')
    losses, _ = distiller(*next(iter(loader)))
    assert set(losses) == {'loss', 'ce', 'kl'}
    assert set(distiller.checkpoint()) == {'model'} and distiller.pictures() == {}


def test_semckd_memory_format_changes_nothing():
    distiller, loader, _ = build('semckd')
    images, target, index = next(iter(loader))
    plain = distiller(images.contiguous(), target)[0]['loss'].item()
    channels_last = distiller.to(memory_format=torch.channels_last)(images, target)[0]['loss'].item()
    assert channels_last == pytest.approx(plain, rel=1e-4)


def test_semckd_mean_attention():
    distiller, loader, opt = build('semckd')
    train_epoch(1, loader, distiller, torch.optim.SGD(distiller.parameters(), lr=1e-4), opt)
    attention = torch.tensor(distiller.pictures()['attention'])
    assert attention.shape == (3, 3) and torch.allclose(attention.sum(1), torch.ones(3), atol=1e-5)
    assert torch.tensor(distiller.pictures()['attention']).sum() == 0       # reading starts again
    state = distiller.checkpoint()
    assert {f'attention.{k}' for k in state['attention']} == {k for k in state['distiller'] if '.' in k}


WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal,
           torch.ops.aten._linalg_eigh, torch.ops.aten._linalg_svd)


class Synchronisations(TorchDispatchMode):
    """Counts the operations that would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in WAITING:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('method', distiller_dict)
def test_a_step_does_not_wait_for_the_device(method):
    distiller, loader, opt = build(method)
    if len(distiller.spec.views) > 1:        # a strong view is drawn image by image, on the CPU
        loader = RepeatedBatch(next(iter(loader)), 3)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    with Synchronisations() as mode:
        train_epoch(1, loader, distiller, optimizer, opt)
    allowed = {'aten._linalg_eigh.default'} if method == 'kdsvd' else set()     # it reads back whether it converged
    assert set(mode.seen) == allowed


def test_learning_rate():
    optimizer = torch.optim.SGD([{'params': [torch.nn.Parameter(torch.zeros(1))]},
                                 {'params': [torch.nn.Parameter(torch.zeros(1))], 'lr': 0.5}], lr=0.05)
    opt = SimpleNamespace(learning_rate=0.05, lr_decay_rate=0.1, lr_decay_epochs=[2, 3], sched='step', warmup_epochs=0)
    rates = [adjust_learning_rate(epoch, optimizer, opt) for epoch in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.0005])
    assert [group['lr'] for group in optimizer.param_groups] == pytest.approx([0.0005, 0.005])


def test_validation_counts_every_image_once():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
    images, target = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8), torch.arange(50) % 10
    got = validate(MemoryLoader(images, target, 16, CPU), net)
    whole, _, _ = next(iter(MemoryLoader(images, target, 50, CPU)))
    logits = net(whole)
    assert got['test_loss'] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-6)
    assert got['test_acc'] == pytest.approx((logits.argmax(1) == target).float().mean().item() * 100)
    top5 = (logits.topk(5, 1).indices == target[:, None]).any(1).float().mean().item() * 100
    assert got['test_acc_top5'] == pytest.approx(top5) and not net.training
    assert (got['test_classes_predicted'], got['test_classes']) == (len(logits.argmax(1).unique()), 10)


def test_one_class_for_all_test_images(capsys):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
    net[1].bias.data[3] = 1e3
    images = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8)
    share, alone = (validate(MemoryLoader(images, target, 16, CPU), net)
                    for target in (torch.arange(20) % 4, torch.full((20,), 3)))
    assert (share['test_acc'], share['test_classes_predicted'], share['test_classes']) == (25, 1, 4)
    assert (alone['test_acc'], alone['test_classes_predicted'], alone['test_classes']) == (100, 1, 1)
    show_evaluation('net', share)
    assert capsys.readouterr().out.splitlines()[1] == \
        'net predicts one class for all test images: its top-1 is only the share of that class'
    show_evaluation('net', alone)
    assert 'predicts' not in capsys.readouterr().out
    assert not predicts_one_class({'test_acc': 25.0})       # of a run that did not count them


def test_a_net_that_gives_nan_has_no_accuracy():
    """topk takes NaN for the largest, so the first class would be its answer."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
    net[1].bias.data[3] = float('nan')
    loader = MemoryLoader(torch.zeros(4, 3, 4, 4, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), 4, CPU)
    with pytest.raises(UserError, match='the run diverged in epoch 1: the loss on the test images is nan; lower --lea'):
        validate(loader, net)
    with pytest.raises(UserError, match='^--evaluate x.pth: its loss on the test images is nan, so it has no accuracy'):
        validate(loader, net, source='--evaluate x.pth')


def test_running_statistics_that_are_not_finite_are_not_saved():
    """Finite losses and parameters do not say that the saved net is one."""
    distiller, _, _ = build('kd')
    check = FiniteCheck(2, torch.optim.SGD(distiller.parameters(), lr=0.1))
    check.check_weights(distiller)
    distiller.student.bn1.running_var[0] = float('inf')
    with pytest.raises(UserError, match='no longer finite in epoch 2'):
        check.check_weights(distiller)


def test_a_diverged_run_stops():
    distiller, loader, opt = build('kd')
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e12)
    with pytest.raises(UserError, match='the loss diverged in epoch 1, at step .*ce .*learning rate 1e'):
        train_epoch(1, loader, distiller, optimizer, opt)
    with pytest.raises(UserError, match='the loss diverged'):
        train_epoch(2, loader, Vanilla(distiller.student), optimizer, opt)


def test_unknown_method():
    with pytest.raises(UserError, match='--distill semkd: no such method; did you mean semckd'):
        get_method('semkd')


def test_a_meter_of_an_older_version_drops_losses_of_weight_0():
    meter = Meter()
    meter.restore([{'names': ['loss', 'kl', 'ce'], 'sums': torch.tensor([4.0, 8.0, 2.0]), 'samples': 2}], CPU)
    meter.update({'loss': torch.tensor(1.0), 'ce': torch.tensor(3.0)}, None, torch.zeros(2))
    assert meter.averages() == {'loss': 1.5, 'ce': 2.0}
