"""Methods of 2023 to 2026, most of which compare features: criteria against criteria_2026.json, hard inputs, options.

The references are in double. Each case is computed in double and again in float32.
"""
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import build
from fixtures.recipe import tensor
from fixtures.reference import check, close, of, set_parts

import distiller_zoo as zoo
import train_student
from dataset import Data
from helper.errors import UserError
from options import student_options

REFERENCE = json.loads((Path(__file__).parent / 'fixtures' / 'criteria_2026.json').read_text())
TARGET = torch.arange(8) * 11 % 100
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}      # relative, of losses and gradients


def logits(dtype):
    """Both nets' logits (8, 100)."""
    s, t = (3 * tensor(seed, 8, 100).to(dtype) for seed in (1, 2))
    return s.requires_grad_(), t


def srd(case, dtype):
    h, f_t = tensor(13, 8, 96).to(dtype), tensor(33, 8, 96).relu_().to(dtype)
    if 'then' in case['inputs']['h']:
        h[:, 20:40], f_t[:, :30] = 1.5, 0
    return zoo.SRDLoss()(h.requires_grad_(), f_t), [h], {}


def srd_projected(case, dtype):
    f_s, f_t = tensor(50, 8, 64).to(dtype).requires_grad_(), tensor(33, 8, 96).relu_().to(dtype)
    projector = torch.nn.Linear(64, 96, dtype=dtype)
    parameters = set_parts(case, of(projector, ('projector.', '')))
    return zoo.SRDLoss()(projector(f_s), f_t), [f_s], parameters


def srd_total(case, dtype):
    f_s, f_t = (tensor(seed, 8, 512, 3, 3).relu_().to(dtype) for seed in (12, 32))
    (s, t), projector = logits(dtype), torch.nn.Linear(512, 512, dtype=dtype)
    parameters = set_parts(case, of(projector, ('projector.', '')))
    distance = zoo.SRDLoss()(projector(f_s.requires_grad_().mean((2, 3))), f_t.mean((2, 3)))
    return 2 * distance + zoo.distill_kl(s, t, 1), [f_s, s], parameters


def orthonormal(x):
    """The orthonormal factor of x, or of its transpose where x is wide, from the QR decomposition with a positive
    diagonal."""
    if x.shape[0] < x.shape[1]:
        return orthonormal(x.t()).t()
    q, r = torch.linalg.qr(x)
    return q * r.diagonal().sign()


def vkd(c_s, c_t, share):
    """share: the rms of torch's parameter's gradient divided by that of its Cayley map."""
    def run(case, dtype):
        f_s, f_t = (4 * tensor(50, 8, c_s)).to(dtype), tensor(51, 8, c_t).to(dtype)
        f_s[1], f_t[0] = 0, 0
        matrix = orthonormal(tensor(1050, c_t, c_s).double()).to(dtype).requires_grad_()
        zoo.VkDLoss()(f_s @ matrix.t(), f_t).backward()
        close(matrix.grad, case['matrix_grad'], TOLERANCE[dtype])
        projector = zoo.OrthogonalProjector(c_s, c_t).to(dtype)
        with torch.no_grad():       # a start whose first columns are the matrix
            tall = matrix if c_t >= c_s else matrix.t()
            projector.start[:, :tall.shape[1]] = tall
            left = projector.start[:, tall.shape[1]:]
            projector.start[:, tall.shape[1]:] = orthonormal(left - tall @ (tall.t() @ left))
        loss = zoo.VkDLoss()(projector(f_s.requires_grad_()), f_t)
        want = case['param_grad_rms'].pop('projector')
        grad, = torch.autograd.grad(loss, projector.skew, retain_graph=True)
        assert share * grad.pow(2).mean().sqrt().item() == pytest.approx(want, rel=TOLERANCE[dtype])
        return loss, [f_s], {}
    return run


def vkd_standardize(case, dtype):
    h, f_t = tensor(13, 24, 30).to(dtype).requires_grad_(), (3 * tensor(33, 24, 30) + 5).to(dtype)
    return zoo.VkDLoss('standardize')(h, f_t), [h], {}


def nd(case, dtype):
    centres, f_t = (tensor(97, 100, 64).relu_() + 0.1).to(dtype), tensor(51, 8, 64).relu_().to(dtype)
    f_s = f_t.clone()
    if 'equal' not in case['call']:
        f_s = tensor(50, 8, 64).to(dtype) * torch.tensor([3, 3, 3, 0.3, 0.3, 0.3, 1, 0], dtype=dtype)[:, None]
    return zoo.NDLoss(centres)(f_s.requires_grad_(), f_t, TARGET), [f_s], {}


def nd_connector(case, dtype):
    f_s, f_t = tensor(50, 8, 64).to(dtype).requires_grad_(), tensor(51, 8, 128).relu_().to(dtype)
    connector = zoo.NDConnector(64, 128, dropout=0).to(dtype)
    parameters = set_parts(case, of(connector))
    return zoo.NDLoss((tensor(98, 100, 128).relu_() + 0.1).to(dtype))(connector(f_s), f_t, TARGET), [f_s], parameters


def nd_class_means(case, dtype):
    """The reference is rounded to four decimals."""
    distiller, _, _ = build('nd')
    distiller.criterion = zoo.NDLoss(torch.ones(3, 4, dtype=dtype))
    distiller.teacher.outputs = lambda images: SimpleNamespace(embedding=images)
    batches = [(tensor(seed, 6, 4).relu_().to(dtype), torch.arange(6) % 3, None) for seed in (99, 100)]
    distiller.prepare(SimpleNamespace(unaugmented_loader=lambda: batches))
    torch.testing.assert_close(distiller.criterion.centres, torch.tensor(case['means'], dtype=dtype), atol=1e-4, rtol=0)


def wkdf(case, dtype):
    mean_weight, grid = (int(re.search(rf'{name}=(\d+)', case['call'])[1]) for name in ('mean_weight', 'grid'))
    shape = (8, 20, 7, 7) if 'overlap' in case['call'] else (8, 96, 8, 8)
    f_s, f_t = (tensor(seed, *shape).relu_().to(dtype) for seed in (12, 32))
    if 'then' in case['inputs']['f_s']:
        f_s[0], f_s[1], f_s[2, :40], f_t[1:3] = 0, 1, 0, 0
    return zoo.WKDFeatureLoss(mean_weight, 1e-5, grid)(f_s.requires_grad_(), f_t), [f_s], {}


def wkdf_projected(projector, mean_weight, grid):
    def run(case, dtype):
        f_s, f_t = (tensor(seed, 8, c, 8, 8).relu_().to(dtype) for seed, c in ((12, 64), (32, 96)))
        part = projector().to(dtype)
        parameters = set_parts(case, of(part))
        return zoo.WKDFeatureLoss(mean_weight, grid=grid)(*part(f_s.requires_grad_(), f_t)), [f_s], parameters
    return run


def wkdf_schedule(case, dtype):
    for name, start, epochs in (('from150_of240', 150, 240), ('from0_of100', 0, 100)):
        want = case['schedule'][name]
        distiller = build('wkdf', wkdf_decay_from=start)[0]
        found = {}
        for epoch in want:
            distiller.begin_epoch(int(epoch), epochs)
            found[epoch] = distiller.schedule_factor.item()
        assert found == pytest.approx(want, rel=1e-4, abs=1e-7)


def wkdl_and_wkdf(epoch):
    def run(case, dtype):
        s, t = logits(dtype)
        low = t[4].min() - 1
        t[torch.arange(4), TARGET[:4]] += 12
        t[4, TARGET[4]] = low
        f_s, f_t = (tensor(seed, 8, 96, 8, 8).relu_().to(dtype) for seed in (12, 32))
        p, factor = F.normalize(tensor(90, 100, 16), dim=1).to(dtype), zoo.weight_factor(epoch, 240, 150)
        of_logits = zoo.WKDLogitLoss(zoo.transport_cost(1 - p @ p.t()), 8, 200 * factor)
        of_maps = zoo.WKDFeatureLoss(8)(f_s.requires_grad_(), f_t)
        return of_logits(s, t, TARGET) + 0.08 * factor * of_maps, [s, f_s], {}
    return run


def ikl(criterion, classes=100, scale=3, prior=None):
    """prior: the shape of its logits, if there is one."""
    def run(case, dtype):
        s, t = (scale * tensor(seed, 8, classes).to(dtype) for seed in (1, 2))
        target = TARGET if classes > 2 else torch.arange(8) % 2
        if 'these four' in case['inputs']['logits_t']:
            low = t[4].min() - 1
            t[torch.arange(4), target[:4]] += 12
            t[4, target[4]] = low
        rows = F.softmax(tensor(95, classes, classes).to(dtype), 1)[target] if prior else None
        return criterion(s.requires_grad_(), t, rows), [s], {}
    return run


def class_table(case, dtype):
    means = zoo.ClassMeans(5).to(dtype)
    torch.testing.assert_close(means(torch.arange(5)), torch.tensor(case['first'], dtype=dtype))
    for epoch, want in enumerate(case['after']):
        for i in range(3):
            target = torch.arange(12) % 5 if i == 0 else torch.arange(12) * (i + 2) % 5
            means.add(F.softmax(tensor(96 + 10 * epoch + i, 12, 5).to(dtype) / 4, 1), target)
        means.turn()
        torch.testing.assert_close(means(torch.arange(5)), torch.tensor(want, dtype=dtype), atol=1e-6, rtol=1e-4)


# case -> function of (its reference, dtype) that returns (loss, inputs with gradients, {name: parameter}), or returns
# nothing and checks the whole reference itself
CASES = {
    'SRD': srd, 'SRD_dead_channels': srd, 'SRD_projected': srd_projected, 'SRD_total': srd_total,
    'VkD_narrow_student': vkd(64, 96, 2), 'VkD_wide_student': vkd(96, 64, 2), 'VkD_equal': vkd(64, 64, 1),
    'VkD_standardize': vkd_standardize,
    'IKL_own_T100': ikl(zoo.IKLLoss()), 'IKL_own_T2': ikl(zoo.IKLLoss(4, 12, 4, 2)),
    'IKL_prior': ikl(zoo.IKLLoss(1, 0.5, 1, 1), prior=True), 'IKL_sharp': ikl(zoo.IKLLoss(1, 1, 1, 1), scale=40),
    'IKL_two_classes': ikl(zoo.IKLLoss(1, 0.5, 1, 1), 2, prior=True), 'IKL_class_table': class_table,
    'GKL_prior_0.05': ikl(zoo.GKLLoss(), prior=True), 'GKL_own_0.3': ikl(zoo.GKLLoss(3, 20, 0.3)),
    'GKL_prior_0': ikl(zoo.GKLLoss(1, 8, 0), prior=True), 'GKL_two_classes': ikl(zoo.GKLLoss(1, 8, 0.2), 2),
    'GKL_prior_0.6': ikl(zoo.GKLLoss(1, 0.5, 0.6, 1, 1), prior=True),
    'WKDF_grid1': wkdf, 'WKDF_grid2': wkdf, 'WKDF_grid4': wkdf, 'WKDF_grid4_of_7': wkdf, 'WKDF_flat_maps': wkdf,
    'WKDF_conv1x1': wkdf_projected(lambda: zoo.ConvReg((8, 64, 8, 8), (8, 96, 8, 8)), 4, 1),
    'WKDF_bottleneck': wkdf_projected(lambda: zoo.WKDBottleneck(64, 96, 32), 2, 4), 'WKDF_schedule': wkdf_schedule,
    'WKDLF_epoch1': wkdl_and_wkdf(1), 'WKDLF_epoch195': wkdl_and_wkdf(195),
    'ND': nd, 'ND_equal': nd, 'ND_connector': nd_connector, 'ND_class_means': nd_class_means,
}


@pytest.mark.parametrize('name, dtype', [(name, dtype) for name in CASES for dtype in (
    [torch.float32] if REFERENCE[name].get('dtype') == 'float32' else TOLERANCE)])
def test_criterion(name, dtype):
    case = json.loads(json.dumps(REFERENCE[name]))      # a copy
    result = CASES[name](case, dtype)
    assert (result is None) == ('loss' not in case)
    if result is not None:
        check(case, *result, TOLERANCE[dtype])


@pytest.mark.parametrize('c_s, c_t', [(6, 10), (10, 6), (7, 7)])
@pytest.mark.parametrize('optimizer', [torch.optim.AdamW, torch.optim.SGD])
def test_the_projector_stays_orthonormal(optimizer, c_s, c_t):
    """In steps with weight decay, which alone leads the matrix back to its start."""
    torch.manual_seed(0)
    projector, f, target = zoo.OrthogonalProjector(c_s, c_t), torch.randn(8, c_s), torch.randn(8, c_t)
    start = projector.matrix().detach()
    steps = optimizer(projector.parameters(), lr=0.1, weight_decay=0.1)

    def step(loss):
        steps.zero_grad()
        loss.backward()
        steps.step()
        matrix = projector.matrix().detach()
        product = matrix.t() @ matrix if c_t >= c_s else matrix @ matrix.t()
        torch.testing.assert_close(product, torch.eye(min(c_s, c_t)), atol=1e-5, rtol=0)
        return (matrix - start).norm()
    moved = [step(zoo.VkDLoss()(projector(f), target)) for _ in range(20)][-1]
    assert moved > 0.1
    steps = optimizer(projector.parameters(), lr=0.1, weight_decay=0.5)
    assert [step(0 * projector(f).sum()) for _ in range(100)][-1] < 0.1 * moved


def test_the_projector_is_that_of_torch():
    """Of any parameter the matrix is that of torch's own Cayley map."""
    for c_s, c_t in ((6, 10), (10, 6), (7, 7)):
        torch.manual_seed(0)
        layer = torch.nn.Linear(c_s, c_t, bias=False)
        torch.nn.utils.parametrizations.orthogonal(layer, orthogonal_map='cayley')
        projector = zoo.OrthogonalProjector(c_s, c_t)
        parameter = layer.parametrizations.weight
        with torch.no_grad():
            parameter.original.normal_()
            projector.skew.copy_(parameter.original if c_t >= c_s else parameter.original.t())
            projector.start.copy_(parameter[0].base)
        torch.testing.assert_close(projector.matrix(), layer.weight, atol=1e-5, rtol=0)


HARD = {        # (student's embedding (4, 6), teacher's)
    'zeros': lambda: (torch.zeros(4, 6), torch.zeros(4, 6)), 'equal': lambda: 2 * (tensor(1, 4, 6),),
    'a dead student': lambda: (torch.zeros(4, 6), tensor(2, 4, 6)),
    'a dead teacher': lambda: (tensor(1, 4, 6), torch.zeros(4, 6)),
    'large': lambda: (1e4 * tensor(1, 4, 6), 1e4 * tensor(2, 4, 6)),
    'constant': lambda: (tensor(1, 6).expand(4, 6), tensor(2, 6).expand(4, 6))}
ON_EMBEDDINGS = {
    'srd': zoo.SRDLoss(), 'vkd': zoo.VkDLoss(), 'vkd standardize': zoo.VkDLoss('standardize'),
    'nd': lambda f_s, f_t: zoo.NDLoss(torch.eye(2, 6))(f_s, f_t, torch.arange(4) % 2),
    'nd, a dead class': lambda f_s, f_t: zoo.NDLoss(torch.zeros(2, 6))(f_s, f_t, torch.arange(4) % 2),
}


@pytest.mark.parametrize('case', HARD)
@pytest.mark.parametrize('name', ON_EMBEDDINGS)
def test_losses_on_embeddings_stay_finite(name, case):
    f_s, f_t = HARD[case]()
    f_s = f_s.clone().requires_grad_()
    loss = ON_EMBEDDINGS[name](f_s, f_t)
    loss.backward()
    assert loss.isfinite() and f_s.grad.isfinite().all()


def test_a_constant_channel_is_not_magnified():
    """Its mean is rounded."""
    f = (torch.arange(1, 51) / 7).expand(24, 50)
    assert (f - f.mean(0)).abs().max() > 0 and zoo.VkDLoss('standardize')(f, tensor(1, 1, 50).expand(24, 50)) == 0


@pytest.mark.parametrize('classes', [2, 10])
@pytest.mark.parametrize('name, make', [
    ('equal', lambda n: (tensor(1, 6, n), tensor(1, 6, n))), ('flat', lambda n: (torch.zeros(6, n), torch.ones(6, n))),
    ('certain', lambda n: (200 * F.one_hot(torch.arange(6) % n, n).float(),
                           200 * F.one_hot((torch.arange(6) + 1) % n, n).float())),
    ('last', lambda n: (tensor(1, 6, n), -50 * F.one_hot(torch.arange(6) % n, n).float()))])
def test_ikl_and_gkl_stay_finite(name, make, classes):
    """Also with a prior without doubt, whose other weights are 0."""
    sure = F.one_hot(torch.arange(6) % classes, classes).float()
    for criterion in (zoo.IKLLoss(1, 8, 1, 1), zoo.GKLLoss(1, 8, 0.05, 1, 1), zoo.GKLLoss(1, 8, 0)):
        for prior in (None, sure):
            s, t = make(classes)
            s.requires_grad_()
            loss = criterion(s, t, prior)
            loss.backward()
            assert loss.isfinite() and s.grad.isfinite().all()


def test_pairs_of_classes():
    """The sums over pairs by their definition; with power 0 the zeros of a prior count as much as the rest."""
    s, t = tensor(1, 4, 5).double(), tensor(2, 4, 5).double()
    squares = ((t - s)[:, :, None] - (t - s)[:, None, :]).pow(2)
    soft = -(F.softmax(t, 1) * F.log_softmax(s, 1)).sum(1).mean()
    weights = F.softmax(t / 2, 1)
    want = (weights[:, :, None] * weights[:, None, :] * squares).sum() / 4 / 4      # of four samples
    torch.testing.assert_close(zoo.IKLLoss(2, 3, 1, 2)(s, t), 3 * want + 2 * soft)
    want = squares.sum() / 4 / (4 * 5 ** 2)
    prior = F.one_hot(torch.arange(4), 5).double()
    torch.testing.assert_close(zoo.GKLLoss(2, 3, 0, 1)(s, t, prior), 3 * want + 2 * soft)


def test_a_class_without_samples_keeps_its_row():
    means = zoo.ClassMeans(3)
    for target in ([0, 0, 2], [1, 1, 1]):
        means.add(F.one_hot(torch.tensor(target), 3).float(), torch.tensor(target))
        means.turn()
    assert means.table.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    means = zoo.ClassMeans(3)
    means.add(F.one_hot(torch.tensor([0, 1]), 3).float(), torch.tensor([0, 0]))
    means.turn()
    assert means.table.tolist() == [[0.5, 0.5, 0], pytest.approx([1 / 3] * 3), pytest.approx([1 / 3] * 3)]
    before = means.table.clone()
    means.turn()        # an epoch without a batch
    assert torch.equal(means.table, before)


@pytest.mark.parametrize('map_s, map_t', [(torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 4, 4)),
                                          (torch.zeros(2, 4, 4, 4), torch.ones(2, 4, 4, 4)),
                                          (1e4 * tensor(1, 2, 4, 4, 4), torch.full((2, 4, 4, 4), 1e4))])
def test_flat_maps_stay_finite(map_s, map_t):
    map_s = map_s.clone().requires_grad_()
    loss = zoo.WKDFeatureLoss(grid=2)(map_s, map_t)
    loss.backward()
    assert loss.isfinite() and map_s.grad.isfinite().all()


@pytest.mark.parametrize('criterion', [zoo.SRDLoss(), zoo.VkDLoss('standardize')])
def test_one_sample_has_no_deviation(criterion):
    with pytest.raises(ValueError, match='the samples of a batch: give at least two'):
        criterion(torch.ones(1, 4), torch.ones(1, 4))


# The methods

@pytest.mark.parametrize('flags, want', [
    ('srd', {'gamma': 1, 'alpha': 1, 'beta': 2, 'kd_T': 1}),
    ('vkd', {'gamma': 1, 'alpha': 1, 'beta': 1, 'kd_T': 1, 'vkd_norm': 'layer'}),
    ('nd', {'gamma': 1, 'alpha': 3.5, 'beta': 2, 'kd_T': 4, 'kl_warmup_epochs': 20, 'loss_warmup_epochs': None}),
    ('nd --dataset imagenet', {'alpha': 2.5, 'beta': 1, 'kd_T': 1, 'kl_warmup_epochs': 5}),
    ('wkdf', {'gamma': 1, 'alpha': 0, 'beta': 0.08, 'wkdf_mean_weight': 4, 'wkdf_grid': 1, 'wkdf_decay_from': 150}),
    ('wkdf --dataset imagenet', {'beta': 0.02, 'wkdf_mean_weight': 2, 'wkdf_grid': 4, 'wkdf_projector': 'bottleneck'}),
    ('wkdl+wkdf', {'alpha': 0, 'beta': [1, 0.08], 'wkdl_weight': 600, 'wkdf_mean_weight': 4}),
    ('ikl', {'gamma': 1, 'alpha': 0, 'beta': 1, 'kd_T': 4, 'loss_warmup_epochs': 20, 'ikl_alpha': 1, 'ikl_beta': 8,
             'ikl_weight_T': 100, 'ikl_prior': 'off'}),
    ('ikl --dataset imagenet', {'kd_T': 1, 'loss_warmup_epochs': 1, 'ikl_beta': 0.5, 'ikl_weight_T': 1,
                                'ikl_prior': 'on'}),
    ('gkl', {'kd_T': 4, 'loss_warmup_epochs': 20, 'ikl_beta': 16, 'ikl_weight_T': 4, 'ikl_prior': 'on',
             'gkl_power': 0.05}),
    ('gkl --dataset imagenet', {'kd_T': 1, 'loss_warmup_epochs': 5, 'ikl_beta': 0.5, 'ikl_weight_T': 1,
                                'gkl_power': 0.6}),
    ('dkd+nd', {'alpha': 0, 'beta': [1, 2], 'kl_warmup_epochs': None}),
])
def test_published_options(flags, want):
    opt = vars(student_options(['--path-t', 'x', '--distill', *flags.split()]))
    assert {name: opt[name] for name in want} == want


def test_vkd_standardizes_two_images_or_more():
    with pytest.raises(UserError, match='--batch_size 1: --vkd_norm standardize .* at least 2 for each process, or'):
        build('vkd', batch=1, vkd_norm='standardize')
    build('vkd', batch=1)


def test_vkd_reads_the_patch_tokens():
    """Not the class token, which is the embedding of a transformer."""
    pytest.importorskip('timm')
    from models.find import build as build_net
    student = build_net('timm:vit_tiny_patch16_224,patch_size=8,embed_dim=24,num_heads=2,depth=2', 10, 16)
    distiller, loader, opt = build('vkd')
    distiller = type(distiller)(student, distiller.teacher, opt, Data(loader, loader, 10, 16, loader.target)).eval()
    images, target, index = next(iter(loader))
    out_s, out_t = distiller.student_outputs(images), distiller.teacher_outputs(images)
    tokens = student.net.forward_features(images)[:, 1:].mean(1)
    want = distiller.criterion(distiller.projector(tokens), out_t.embedding)
    assert distiller.method_loss(out_s, out_t, target, index).item() == pytest.approx(want.item(), rel=1e-5)
    assert not torch.allclose(tokens, out_s.embedding)


@pytest.mark.parametrize('flags, words', [
    ('nd --mixup 0.2', '--mixup 0.2: --distill nd needs one class for each image'),
    ('dkd --loss_warmup_epochs 3 -b 0', '--loss_warmup_epochs 3: --distill dkd has no soft labels here; give -a 1'),
    ('nd --kl_warmup_epochs 3 -a 0', '--kl_warmup_epochs 3: --distill nd has no soft labels here; give -a 1'),
    ('dkd+nd --kl_warmup_epochs 3', '--kl_warmup_epochs 3: --distill dkd+nd has no soft labels here; add kd to it'),
    ('gkl --mixup 0.2', '--mixup 0.2: --distill gkl with --ikl_prior on needs one class for each image; give'),
    ('ikl+pkt --ikl_prior on --cutmix 1', '--cutmix 1.0: --distill ikl with --ikl_prior on needs one class for each'),
    ('gkl --unlabelled x', '--unlabelled x: --distill gkl with --ikl_prior on needs one class for each image; give'),
    ('vkd --vkd_norm batch', '--vkd_norm'), ('wkdf --wkdf_grid 0', '--wkdf_grid: 0'),
])
def test_bad_options_are_one_line(call, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, '--path-t', 'x.pth', '--save_dir', tmp_path / 's', '--distill', *flags.split())
    done = capsys.readouterr()
    assert caught.value.code == 2 and words in done.err and done.err.count('\n') == 1 and not (tmp_path / 's').exists()


def test_the_soft_labels_warm_up_apart():
    """From 0, in nd beside its own loss; in a sum those of kd, and without another loss beside --loss_warmup_epochs."""
    def factors(name, epochs, part=None, **options):
        distiller = build(name, **options)[0]
        found = []
        for epoch in epochs:
            distiller.begin_epoch(epoch, 240)
            weights = distiller.weights()
            found.append(tuple(round(float(weights[loss]), 6) for loss in (part or 'kl', 'method') if loss in weights))
        return found
    assert factors('nd', (1, 2, 11, 21, 240)) == [(0, 2), (0.175, 2), (1.75, 2), (3.5, 2), (3.5, 2)]
    assert factors('nd', (1, 2, 5), loss_warmup_epochs=4) == [(0, 0.5), (0.175, 1), (0.7, 2)]
    assert factors('nd', (1, 9), kl_warmup_epochs=0) == [(3.5, 2), (3.5, 2)]
    assert factors('nd+kd', (1, 3, 5), 'kd', beta=[1.0, 8.0], kl_warmup_epochs=4) == [(0,), (4,), (8,)]
    assert factors('kd', (1, 2, 3), kl_warmup_epochs=2, loss_warmup_epochs=3, beta=0.0) == \
        [(0, 0), (pytest.approx(1 / 3, abs=1e-5), 0), (1, 0)]


def test_nd_names_a_class_without_images():
    distiller, loader, opt = build('nd')
    for classes, words in (((), 'class 9, counted from 0,'), (('x', ) * 9 + ('dog', ), 'class dog 9, counted from 0,')):
        data = Data(loader, loader, 10, 16, loader.target.clamp(max=8), classes=classes)
        with pytest.raises(UserError, match=f'--distill nd: {words} has no training image; give each class at least'):
            type(distiller)(distiller.student, distiller.teacher, opt, data)


def test_nd_has_a_connector_where_widths_differ():
    same, other, imagenet = build('nd')[0], build('nd', 'wrn_16_1', 'ShuffleV1', size=32)[0], \
        build('nd', 'wrn_16_1', 'ShuffleV1', size=32, dataset='imagenet')[0]
    assert not [*same.connector.parameters()] and other.connector.linear.bias.abs().sum() == 0
    assert imagenet.connector.linear.weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize('student, size, grid, words', [
    ('resnet8', 16, 4, '--wkdf_grid 4: .* resnet8 and resnet14 are compared at 4x4 positions, .*; give at most 3'),
    ('MobileNetV2', 16, 1, '--distill wkdf: .* MobileNetV2 and resnet14 are compared at one position')])
def test_wkdf_refuses_cells_of_one_position(student, size, grid, words):
    with pytest.raises(UserError, match=words):
        build('wkdf', 'resnet14', student, size=size, wkdf_grid=grid)
    with pytest.raises(ValueError, match='cells of one'):
        zoo.WKDFeatureLoss(grid=4)(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4))


def test_wkdf_with_maps_of_other_sizes():
    """The bottleneck pools the larger one; the convolution upsamples or the teacher's map is pooled."""
    for student, projector in (('MobileNetV2', 'bottleneck'), ('MobileNetV2', 'conv'), ('vgg8', 'bottleneck')):
        distiller, loader, _ = build('wkdf', 'resnet14', student, size=32, wkdf_projector=projector)
        assert distiller(*next(iter(loader)))[0]['method'] > 0 and distiller.projector.training


def test_the_schedule_of_wkdf_multiplies_a_warm_up():
    distiller = build('wkdf', loss_warmup_epochs=4, wkdf_decay_from=0)[0]
    for _ in range(2):      # a resumed run begins an epoch again
        distiller.begin_epoch(2, 4)
    assert distiller.weights()['method'].item() == pytest.approx(0.08 * 0.5 * 0.5)


def test_the_prior_is_of_the_epoch_before():
    """The teacher's means over all batches of an epoch weight the classes in the next one, in a sum of methods too."""
    distiller, loader, opt = build('ikl+pkt', beta=[1.0, 1.0], ikl_prior='on', ikl_weight_T=2.0)
    part, batches = distiller.parts['ikl'], []
    for number in (1, 2):
        distiller.begin_epoch(20, 240)
        found = [(distiller(*batch)[0]['ikl'], *batch) for batch in loader]
        loss, images, target, _ = found[0]
        out_s, out_t = distiller.student_outputs(images), distiller.teacher_outputs(images)
        rows = torch.full((8, 10), 0.1) if number == 1 else F.normalize(batches, p=1, dim=1)[target]
        want = zoo.IKLLoss(1, 8, 4, 2)(out_s.logits, out_t.logits, rows)
        assert loss.item() == pytest.approx(want.item(), rel=1e-4)
        p = [(F.softmax(distiller.teacher(images) / 2, 1), target) for _, images, target, _ in found]
        batches = torch.zeros(10, 10).index_add_(0, torch.cat([t for _, t in p]), torch.cat([x for x, _ in p]))
        distiller.end_epoch()
        assert part.class_means.sums.sum() == part.class_means.counts.sum() == 0
    assert build('ikl')[0].class_means is None
