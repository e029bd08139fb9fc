"""Criteria of 2023 to 2026 against the reference numbers of tests/fixtures/criteria_2026.json.

The references are in double. Each case is computed in double and again in float32, where probabilities may underflow.
"""
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import options
from fixtures.recipe import tensor
from fixtures.reference import check, of, set_parts
from torch import nn

import distiller_zoo as zoo
from distiller_zoo import get_method
from distiller_zoo.eakd import EntropyWeights

REFERENCE = json.loads((Path(__file__).parent / 'fixtures' / 'criteria_2026.json').read_text())
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}      # relative, of losses and gradients


def target_of(classes):
    return torch.arange(8) * 11 % classes if classes > 2 else torch.arange(8) % 2


def logits(dtype, scale=3, classes=100, right=False):
    """Both nets' logits (8, classes). right: the teacher is right on images 0 to 3; the true class of 4 is its last."""
    s, t = (scale * tensor(seed, 8, classes).to(dtype) for seed in (1, 2))
    if right:
        low, target = t[4].min() - 1, target_of(classes)
        t[torch.arange(4), target[:4]] += 12
        t[4, target[4]] = low
    return s.requires_grad_(), t


def on_logits(criterion, needs_target=False, **changes):
    """A case for a criterion of both nets' logits, and of the target if needs_target; changes: arguments of logits."""
    def run(case, dtype):
        s, t = logits(dtype, **changes)
        return criterion(s, t, *([target_of(s.shape[1])] if needs_target else [])), [s], {}
    return run


def ldrld(alpha, beta, temperature, k, **changes):
    def run(case, dtype):
        s, t = logits(dtype, **changes)
        criterion = zoo.LDRLDLoss(alpha, beta, temperature, k)
        parts = dict(zip(('pairs', 'rest'), (part.item() for part in criterion.parts(s, t)), strict=True))
        assert parts == pytest.approx(case['parts'], rel=TOLERANCE[dtype])
        return criterion(s, t), [s], {}
    return run


def luminet_constant(case, dtype):
    s, t = (x.detach() for x in logits(dtype))
    s[:, 40:60], t[:, :50] = -1, 2
    return zoo.LumiNetLoss(33, 4)(s.requires_grad_(), t), [s], {}


def tekap(temperature):
    def criterion(s, t):
        noise = torch.stack([tensor(1070 + i, 8, 100)[:, :s.shape[1]] for i in range(3)]).to(s.dtype)
        return zoo.TeKAPLoss(temperature)(s, t, noise)
    return criterion


def of_teachers(weighting, classes=100):
    """A case for MultiTeacherKL with three teachers, or with two for two classes."""
    def run(case, dtype):
        count, target = (3 if classes > 2 else 2), target_of(classes)
        s, *t = (3 * tensor(seed, 8, classes).to(dtype) for seed in range(1, 2 + count))
        if classes > 2:
            t[0][torch.arange(4), target[:4]] += 12
            t[1][4, target[4]] = t[1][4].min() - 1
        s.requires_grad_()
        return zoo.MultiTeacherKL(4, weighting)(s, t, target), [s], {}
    return run


def camkd_features(case, dtype):
    """Connectors and classifiers of three teachers on the student's map, which is pooled for the third."""
    f_s = tensor(12, 8, 64, 8, 8).relu_().to(dtype).requires_grad_()
    feats_t = [tensor(32 + i, 8, c, h, h).relu_().to(dtype) for i, (c, h) in enumerate([(96, 8), (48, 8), (30, 4)])]
    parts = nn.ModuleDict()
    for i, f_t in enumerate(feats_t):
        parts[f'connector{i}'] = nn.ModuleDict({'conv': nn.Conv2d(64, f_t.shape[1], 1),
                                                'bn': nn.BatchNorm2d(f_t.shape[1])})
        parts[f'classifier{i}'] = nn.Linear(f_t.shape[1], 100)
    parameters = set_parts(case, of(parts.to(dtype)))
    h = [F.relu(parts[f'connector{i}'].bn(parts[f'connector{i}'].conv(F.adaptive_avg_pool2d(f_s, f_t.shape[-1]))))
         for i, f_t in enumerate(feats_t)]
    logits = [parts[f'classifier{i}'](f.mean((2, 3))) for i, f in enumerate(h)]
    return zoo.CAMKDFeatureLoss()(h, feats_t, logits, target_of(100)), [f_s], parameters
def weighted(criterion, temperature=3, bound=100):
    return lambda s, t, *rest: criterion(s, t, *rest, weights=zoo.entropy_weights(s, t, temperature, bound))


def standardized(criterion):
    return lambda s, t, *rest: criterion(zoo.standardize_logits(s), zoo.standardize_logits(t), *rest)


def eakd_weights(temperature, bound):
    def run(case, dtype):
        weights = zoo.entropy_weights(*logits(dtype, right=True), temperature, bound)
        assert weights.tolist() == pytest.approx(case['weights'], rel=TOLERANCE[dtype]) and not weights.requires_grad
    return run


def eakd_bounds(case, dtype):
    for name, bound in case['bounds'].items():
        method, _, dataset = name.partition(' ')
        opt = options(method, entropy_weights=True, entropy_bound=None, entropy_T=None, dataset=dataset or 'cifar100')
        get_method(method).fill_in(opt)
        classes = 1000 if dataset == 'imagenet' else 100
        assert EntropyWeights(get_method(method).spec, opt, classes).bound == pytest.approx(bound, rel=1e-6)


def eakd_reviewkd(case, dtype):
    s, t = logits(dtype, right=True)
    fused, feats_t = ([tensor(seed + i, *shape).to(dtype) for i, shape in enumerate(
        [(8, 24, 16, 16), (8, 48, 4, 4), (8, 96, 1, 1)])] for seed in (10, 30))
    for f in fused:
        f.requires_grad_()
    return zoo.HCLLoss()(fused, feats_t, zoo.entropy_weights(s, t, bound=math.log(100))), fused, {}


def eakd_mlld(temperature, standardize):
    def run(case, dtype):
        views = [3 * tensor(seed, 8, 100).to(dtype) for seed in (1, 2, 3, 4)]
        views[0].requires_grad_()
        views[2].requires_grad_()
        parts = zoo.MLLDLoss(temperature, standardize, entropy_weights=True).parts(*views)
        assert [part.item() for part in parts] == pytest.approx([*case['parts'].values()], rel=TOLERANCE[dtype])
        return parts[0], [views[0], views[2]], {}
    return run


def ofa_stack(case, dtype):
    """The heads of four stages, whose layers the file counts by blocks of two separable convolutions."""
    shapes, target = [(16, 16), (32, 8), (48, 4), (64, 2)], torch.arange(8) * 3 % 10
    maps = [tensor(10 + i, 8, c, size, size).relu_().to(dtype).requires_grad_() for i, (c, size) in enumerate(shapes)]
    s, t = logits(dtype, classes=10)
    heads = nn.ModuleList(zoo.ExitHead(c, size, 2, 96, 10) for c, size in shapes).to(dtype)

    def parameter(name):
        head, *layer, leaf = name.split('.')
        modules = heads[int(head[-1]) - 1]
        if layer[0] in ('conv', 'linear'):
            return getattr(modules[0 if layer[0] == 'conv' else -1], leaf)
        block, kind = layer[:2]
        depthwise, pointwise, _ = modules[2 * int(block) + int(kind[-1]) - 1]
        return getattr({'depth': depthwise, 'point': pointwise.conv}.get(kind[:-1], pointwise.bn), leaf)
    parameters = set_parts(case, parameter)
    assert [*map(id, parameters.values())] == [*map(id, heads.parameters())]        # in this order
    branches = [s, *(head(f) for head, f in zip(heads, maps, strict=True))]
    return sum(zoo.ofa_loss(branch, t, target, 1.5) for branch in branches), [s, *maps], parameters


# case -> function of (its reference, dtype) that returns (loss, inputs with gradients, {name: parameter}), or returns
# nothing and checks the whole reference itself
CASES = {
    **{f'MultiTeacher_{name}{suffix}': of_teachers(name, classes)
       for name in ('average', 'confidence', 'entropy') for suffix, classes in (('', 100), ('_two_classes', 2))},
    'CAMKD_features': camkd_features,
    **{f'ABKD_a{a}_b{b}_T{T}': on_logits(zoo.ABKDLoss(a, b, T), right=True) for a, b, T in (
        (0.8, 0.3, 4), (0.5, 0.5, 1), (0.9, 0.3, 2), (1, 0, 4), (0, 1, 4), (0.5, 0, 4), (0, 0.4, 4), (0, 0, 4),
        (0.6, -0.6, 4), (1.2, -0.4, 4))},
    'ABKD_two_classes': on_logits(zoo.ABKDLoss(0.8, 0.3, 4), classes=2),
    'ABKD_sharp_a0.8_b0.3': on_logits(zoo.ABKDLoss(0.8, 0.3, 1), scale=40),
    'ABKD_sharp_a1_b0': on_logits(zoo.ABKDLoss(1, 0, 1), scale=40),
    'ABKD_standardized': on_logits(lambda s, t: 4 * zoo.ABKDLoss(0.9, 0.3, 2)(*map(zoo.standardize_logits, (s, t)))),
    'ABDKD_a0.8_b0.2': on_logits(zoo.ABDKDLoss(1, 6, 4, ab_alpha=0.8, ab_beta=0.2), True, right=True),
    'ABDKD_a1_b0': on_logits(zoo.ABDKDLoss(1, 6, 4, ab_alpha=1, ab_beta=0), True, right=True),
    **{f'LDRLD_a{a}_b{b}_T{T}_k{k}': ldrld(a, b, T, k, right=True) for a, b, T, k in (
        (10.5, 7, 4, 7), (1, 0, 4, 7), (0, 1, 4, 7), (2, 3, 1, 2), (1, 1, 2, 1))},
    'LDRLD_two_classes': ldrld(10.5, 7, 4, 2, classes=2),
    'EAKD_weights_t3': eakd_weights(3, 100), 'EAKD_weights_t2': eakd_weights(2, math.log(1000)),
    'EAKD_bounds': eakd_bounds, 'EAKD_reviewkd': eakd_reviewkd,
    'EAKD_kd_T4': on_logits(weighted(zoo.DistillKL(4)), right=True), 'EAKD_two_classes': on_logits(
        weighted(zoo.DistillKL(4)), classes=2),
    'EAKD_kd_T1_imagenet': on_logits(weighted(zoo.DistillKL(1), 2, math.log(1000)), right=True),
    'EAKD_dkd': on_logits(weighted(partial(zoo.dkd_loss, alpha=1, beta=8, temperature=4)), True, right=True),
    'EAKD_dkd_standardized': on_logits(standardized(weighted(partial(
        zoo.dkd_loss, alpha=2, beta=1, temperature=1), 3, math.log(1000))), True, right=True),
    'EAKD_mlld_T4': eakd_mlld(4, False), 'EAKD_mlld_T2_standardized': eakd_mlld(2, True),
    **{f'OFA_gamma{gamma}_T{T}': on_logits(partial(zoo.ofa_loss, gamma=gamma, temperature=T), True, right=True)
       for gamma, T in ((1, 1), (1.5, 1), (1.5, 4), (1.1, 2))},
    'OFA_two_classes': on_logits(partial(zoo.ofa_loss, gamma=1.5), True, classes=2),
    'OFA_sharp': on_logits(partial(zoo.ofa_loss, gamma=1.5), True, scale=40), 'OFA_stack': ofa_stack,
    'LumiNet_cifar': on_logits(zoo.LumiNetLoss(33, 4), right=True),
    'LumiNet_imagenet': on_logits(zoo.LumiNetLoss(2, 0.7), right=True),
    'LumiNet_two_classes': on_logits(zoo.LumiNetLoss(33, 4), classes=2), 'LumiNet_constant_classes': luminet_constant,
    'TeKAP_T4': on_logits(tekap(4), right=True), 'TeKAP_two_classes': on_logits(tekap(1), classes=2),
}


def dtypes(case):
    return [torch.float32] if case.get('dtype') == 'float32' else [torch.float64, torch.float32]


def test_every_reference_case_is_computed():
    """Here, or in the file of the methods on features, which names each case too."""
    other = (Path(__file__).parent / 'test_criteria_2026_features.py').read_text()
    assert {*CASES} <= {*REFERENCE} and all(f"'{name}'" in other for name in REFERENCE.keys() - CASES.keys())


@pytest.mark.parametrize('name, dtype', [(name, dtype) for name in CASES for dtype in dtypes(REFERENCE[name])])
def test_criterion(name, dtype):
    case = REFERENCE[name]
    result = CASES[name](case, dtype)
    assert (result is None) == ('loss' not in case)
    if result is not None:
        check(case, *result, TOLERANCE[dtype])
