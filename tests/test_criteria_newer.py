"""Criteria of 2021 to 2026 against the reference numbers of tests/fixtures/criteria_newer.json."""
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fixtures.recipe import tensor
from fixtures.reference import check, close, of, set_parts

import distiller_zoo as zoo
from distiller_zoo.criteria.common import ConvBN
from distiller_zoo.criteria.simkd import project
from distiller_zoo.criteria.wkdl import transport_cost, weight_factor
from distiller_zoo.dot import DOT

REFERENCE = json.loads((Path(__file__).parent / 'fixtures' / 'criteria_newer.json').read_text())
TARGET = torch.arange(8) * 11 % 100
EXACT = 1e-4        # relative, of losses and gradients


def logits(scale=3.0, right=False, dtype=torch.float32):
    s, t = (scale * tensor(seed, 8, 100) for seed in (1, 2))
    if right:
        low = t[4].min() - 1
        t[torch.arange(4), TARGET[:4]] += 12
        t[4, TARGET[4]] = low
    return s.to(dtype).requires_grad_(), t.to(dtype)


def on_logits(criterion, target=False, **drawn):
    """A case for a criterion of both nets' logits, and of the target if `target`."""
    def run(case):
        s, t = logits(**drawn)
        return criterion(s, t, *([TARGET] if target else [])), [s], {}
    return run


def standardized(loss):
    return lambda s, t, *rest: loss(zoo.standardize_logits(s), zoo.standardize_logits(t), *rest)


def mlld(temperature, standardize, relations=False):
    def run(case):
        views = [3 * tensor(seed, 8, 100) for seed in (1, 2, 3, 4)]
        views[0].requires_grad_()
        views[2].requires_grad_()
        parts = zoo.MLLDLoss(temperature, standardize).parts(*views)
        if relations:
            return parts[1] + parts[2], views[:1], {}
        assert [part.item() for part in parts] == pytest.approx([*case['parts'].values()], rel=EXACT)
        return zoo.MLLDLoss(temperature, standardize)(*views), [views[0], views[2]], {}
    return run


def skd(case):
    s, t = logits(dtype=torch.float64)
    parts = zoo.SKDLoss(4, 0.1).parts(s, t)
    assert [part.item() for part in parts] == pytest.approx([*case['parts'].values()], rel=EXACT)
    assert zoo.SKDLoss(4, 0.1)(s.float(), t.float()).item() == pytest.approx(case['loss'], rel=EXACT)
    return sum(parts), [s], {}


def wkdl(temperature, weight):
    def run(case):
        s, t = logits(right=True)
        p = F.normalize(tensor(90, 100, 16), dim=1)
        return zoo.WKDLogitLoss(transport_cost(1 - p @ p.t()), temperature, weight)(s, t, TARGET), [s], {}
    return run


def wkdl_cost(case):
    assert torch.allclose(zoo.cka_cost(tensor(91, 5, 12, 7)), torch.tensor(case['matrix']), atol=EXACT)


def wkdl_schedule(case):
    found = {epoch: 600 * weight_factor(int(epoch), 240, 150) for epoch in case['schedule']}
    assert found == pytest.approx(case['schedule'], rel=EXACT, abs=1e-9)


def sdd(base):
    def run(case):
        s, t = (3 * tensor(seed, 8, 100, 21) for seed in (1, 2))
        for b in range(8):
            for n in range(21):
                if (b + n) % 3:
                    t[b, TARGET[b], n] += 12
        s.requires_grad_()
        return zoo.SDDLoss(base, 4, 1, 8)(s, t, TARGET), [s], {}
    return run


def sdd_regions(scales):
    def run(case):
        f, classifier = tensor(12, 8, 64, 8, 8).relu_().requires_grad_(), torch.nn.Linear(64, 100)
        set_parts(case, of(classifier, ('classifier.', '')))
        regions = zoo.regional_logits(f, classifier, scales)
        close(regions, case['regions'], EXACT)
        return (regions * tensor(401, *regions.shape)).sum(), [f], {}
    return run


def ctkd(epoch):
    def run(case):
        (s, t), part = logits(), zoo.GlobalTemperature(1, 20)
        strength = zoo.reversal_strength(epoch, 10)
        assert strength == pytest.approx(case['lambda'], rel=EXACT)
        temperature = part(strength)
        assert temperature.item() == pytest.approx(case['temperature'], rel=EXACT)
        loss = zoo.distill_kl(s, t, temperature)
        # The gradients through T^2 and through the softmax cancel to a thousandth of each, so the float32 reference
        # differs by 1e-3 from the same formula in float64.
        theta_grad = torch.autograd.grad(loss, part.theta, retain_graph=True)[0].item()
        assert theta_grad == pytest.approx(case['theta_grad'], rel=2e-3)
        return loss, [s], {}
    return run


def ctkd_schedule(case):
    for loops in (10, 5):
        want = case['schedule'][f'loops{loops}']
        assert {epoch: zoo.reversal_strength(int(epoch), loops) for epoch in want} == pytest.approx(want, rel=EXACT)


def ickd(case):
    projected = 'weights' in case
    f_s, f_t = (tensor(seed, 8, c, 8, 8).relu_() for seed, c in ((12, 64 if projected else 96), (32, 96)))
    f_s.requires_grad_()
    if not projected:
        return zoo.ICKDLoss()(f_s, f_t), [f_s], {}
    part = ConvBN(64, 96)
    parameters = set_parts(case, of(part))
    return zoo.ICKDLoss()(part(f_s), f_t), [f_s], parameters


SIZES = ((24, 32), (48, 16), (96, 8))       # channels, height of the teacher's maps


def hcl(case):
    shapes = [(8, 24, 32, 32), (8, 48, 16, 16), (8, 96, 4, 4), (8, 96, 2, 2), (8, 96, 1, 1)]
    fused = [tensor(10 + i, *shape).requires_grad_() for i, shape in enumerate(shapes)]
    return zoo.HCLLoss()(fused, [tensor(30 + i, *shape) for i, shape in enumerate(shapes)]), fused, {}


def review(shapes, factor):
    def run(case):
        feats = [tensor(10 + i, 8, *shape) for i, shape in enumerate(shapes)]
        feats = [(f if i == len(shapes) - 1 else f.relu_()).requires_grad_() for i, f in enumerate(feats)]
        teacher = [tensor(30 + i, 8, c, h, h) for i, (c, h) in enumerate(SIZES)] + [tensor(33, 8, 96)[..., None, None]]
        shapes_s = [(*shape, 1, 1)[:3] for shape in shapes]
        stack = zoo.ReviewStack(shapes_s, [f.shape[1:] for f in teacher])
        parameters = set_parts(case, of(stack, (r'^abf(\d)', r'abfs.\1')))
        fused = stack([*feats[:-1], feats[-1][..., None, None]])
        return factor * zoo.HCLLoss()(fused, teacher), feats, parameters
    return run


def norms():
    found = []
    for i, (c, _) in enumerate(SIZES):
        bn = torch.nn.BatchNorm2d(c)
        with torch.no_grad():
            bn.weight.copy_(1 + 0.5 * tensor(600 + i, c))
            bn.bias.copy_(0.8 * tensor(610 + i, c))
            bn.bias[:2] = 4
        found.append(bn)
    return found


def ofd_margins(case):
    for bn, want in zip(norms(), case['margins'], strict=True):
        close(zoo.ofd_margin(bn), want, EXACT)


def ofd(case):
    connected = 'weights' in case
    shapes_t = [(8, c, h, h) for c, h in SIZES]
    shapes_s = [(8, 16, 32, 32), (8, 32, 16, 16), (8, 64, 4, 4)] if connected else shapes_t
    feats_s = [tensor(10 + i, *shape).requires_grad_() for i, shape in enumerate(shapes_s)]
    feats_t = [tensor(30 + i, *shape) for i, shape in enumerate(shapes_t)]
    maps, parameters = feats_s, {}
    if connected:
        parts = torch.nn.ModuleList(ConvBN(s[1], t[1]) for s, t in zip(shapes_s, shapes_t, strict=True))
        parameters = set_parts(case, of(parts, (r'^connector(\d)', r'\1')))
        maps = [part(f) for part, f in zip(parts, feats_s, strict=True)]
    return zoo.OFDLoss([zoo.ofd_margin(bn) for bn in norms()])(maps, feats_t), feats_s, parameters


def srrl(case):
    f_s, f_t, logits_t = tensor(50, 8, 64).requires_grad_(), tensor(51, 8, 96), 3 * tensor(2, 8, 100)
    both = torch.nn.ModuleDict({'transfer': zoo.SRRLTransfer(64, 96), 'classifier': torch.nn.Linear(96, 100)})
    parameters = set_parts(case, of(both, (r'^transfer\.', 'transfer.connector.')))
    h = both['transfer'](f_s)
    logits_st = both['classifier'](h)
    parts = {'feature': F.mse_loss(h, f_t).item(), 'logits': F.mse_loss(logits_st, logits_t).item()}
    assert parts == pytest.approx(case['parts'], rel=EXACT)
    return zoo.SRRLLoss()(h, f_t, logits_st, logits_t), [f_s], parameters


def simkd(size, factor):
    def run(case):
        f_s, f_t = tensor(12, 8, 64, size, size).relu_().requires_grad_(), tensor(32, 8, 96, 8, 8).relu_()
        both = torch.nn.ModuleDict({'projector': zoo.SimKDProjector(64, 96, factor),
                                    'classifier': torch.nn.Linear(96, 100)})
        place = {'1': '0', '2': '2', '3': '4'}
        parameters = set_parts(case, of(both, (r'projector\.(\d)', lambda m: f'projector.{place[m[1]]}')))
        x = project(f_s, both['projector'], min(size, 8))
        close(both['classifier'](x.mean((2, 3))), case['logits'], EXACT)
        return F.mse_loss(x, F.adaptive_avg_pool2d(f_t, min(size, 8))), [f_s], parameters
    return run


def catkd(resolution, normalize, size):
    def run(case):
        cam_s, cam_t = tensor(14, 8, 100, size, size).requires_grad_(), tensor(34, 8, 100, 8, 8)
        return zoo.CATKDLoss(resolution, normalize)(cam_s, cam_t), [cam_s], {}
    return run


def catkd_features(case):
    f_s, classifier = tensor(12, 8, 64, 8, 8).relu_().requires_grad_(), torch.nn.Linear(64, 100)
    with torch.no_grad():
        classifier.weight.copy_(tensor(730, 100, 64) * (1 / 64) ** 0.5)
    cam = zoo.activation_maps(f_s, classifier)
    close(cam, case['cam'], EXACT)
    return zoo.CATKDLoss(2, False)(cam, tensor(34, 8, 100, 8, 8)), [f_s], {}


def dot(case):
    parameters = [torch.nn.Parameter(tensor(800 + i, 6, 5)) for i in range(3)]
    optimizer = DOT(parameters, lr=0.05, momentum=0.9, delta=0.075, weight_decay=0.1)
    for step, after in enumerate(case['params_after_step']):
        for seed, which, finish in ((820, (0, 1), optimizer.store_distillation_grads), (850, (0, 2), optimizer.step)):
            optimizer.zero_grad()
            for i in which:
                parameters[i].grad = tensor(seed + 10 * step + i, 6, 5)
            finish()
        for p, want in zip(parameters, after, strict=True):
            close(p, want, EXACT)


# case -> function that takes the reference of the case and returns (loss, inputs with gradients, {name: parameter}), or
# returns nothing and checks the whole reference itself
CASES = {
    'DIST_tau1': on_logits(zoo.DISTLoss(1, 1, 1)), 'DIST_tau4': on_logits(zoo.DISTLoss(1, 1, 4)),
    'DIST_sharp': on_logits(zoo.DISTLoss(1, 1, 1), scale=12.0),
    'DIST_beta2_gamma0.5': on_logits(zoo.DISTLoss(2, 0.5, 1)),
    'NKD_gamma1.5_T1': on_logits(zoo.NKDLoss(1.5, 1), True), 'NKD_gamma3.5_T3': on_logits(zoo.NKDLoss(3.5, 3), True),
    'NKD_right_gamma1.5_T1': on_logits(zoo.NKDLoss(1.5, 1), True, right=True),
    'TTM_0.1': on_logits(zoo.TTMLoss(0.1)), 'WTTM_0.1': on_logits(zoo.WTTMLoss(0.1)),
    'TTM_0.5': on_logits(zoo.TTMLoss(0.5)), 'WTTM_0.5': on_logits(zoo.WTTMLoss(0.5)),
    'LSKD_kd': on_logits(standardized(zoo.DistillKL(2))),
    'LSKD_dkd': on_logits(standardized(lambda s, t, y: zoo.dkd_loss(s, t, y, 1, 8, 2)), True),
    'RLD_a1_b8_T4_Ta1': on_logits(zoo.RLDLoss(1, 8, 4, 1), True, right=True),
    'RLD_a1_b8_T4_Ta4': on_logits(zoo.RLDLoss(1, 8, 4, 4), True, right=True),
    'RLD_a1_b1_T2_Ta2': on_logits(zoo.RLDLoss(1, 1, 2, 2), True, right=True),
    'RLD_a1_b0_T4_Ta1': on_logits(zoo.RLDLoss(1, 0, 4, 1), True, right=True),
    'MLLD_T4': mlld(4, False), 'MLLD_T4_relations': mlld(4, False, True),
    'MLLD_T2_standardized': mlld(2, True), 'MLLD_T2_standardized_relations': mlld(2, True, True),
    'SKD_mahalanobis': on_logits(lambda s, t: zoo.gram_mahalanobis(s, t, 0.1), dtype=torch.float64),
    'SKD_mahalanobis_1e-5': on_logits(lambda s, t: zoo.gram_mahalanobis(s, t, 1e-5), dtype=torch.float64),
    'SKD': skd, 'WKDL_T8_600': wkdl(8, 600), 'WKDL_T2_30': wkdl(2, 30), 'WKDL_cka_cost': wkdl_cost,
    'WKDL_weight_schedule': wkdl_schedule, 'SDD_kd': sdd('kd'), 'SDD_dkd': sdd('dkd'),
    'SDD_regions_21': sdd_regions([1, 2, 4]), 'SDD_regions_5': sdd_regions([1, 2]),
    'CTKD_epoch1': ctkd(1), 'CTKD_epoch5': ctkd(5), 'CTKD_epoch10': ctkd(10), 'CTKD_schedule': ctkd_schedule,
    'ICKD_maps': ickd, 'ICKD_projected': ickd, 'ReviewKD_hcl': hcl,
    'ReviewKD_equal_sizes': review([(16, 32, 32), (32, 16, 16), (64, 8, 8), (64,)], 1),
    'ReviewKD_other_sizes_epoch5': review([(32, 16, 16), (64, 8, 8), (128, 4, 4), (128,)], 5 / 20),
    'OFD_margins': ofd_margins, 'OFD_maps': ofd, 'OFD_connectors': ofd, 'SRRL': srrl,
    'SimKD_same_size': simkd(8, 2), 'SimKD_student_larger': simkd(16, 4), 'SimKD_student_smaller': simkd(4, 2),
    'CATKD_r2': catkd(2, False, 8), 'CATKD_r4_normalized': catkd(4, True, 4), 'CATKD_from_features': catkd_features,
    'DOT': dot,
}


def test_every_reference_case_is_here():
    assert set(CASES) == set(REFERENCE) and len(CASES) == 52


@pytest.mark.parametrize('name', CASES)
def test_criterion(name):
    case = REFERENCE[name]
    result = CASES[name](case)
    assert (result is None) == ('loss' not in case)
    if result is not None:
        check(case, *result, EXACT)
