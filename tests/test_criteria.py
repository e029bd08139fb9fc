"""Criteria and their trainable parts against the reference numbers of tests/fixtures/criteria.json."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fixtures.recipe import digest, fill_, tensor

import distiller_zoo as zoo

REFERENCE = json.loads((Path(__file__).parent / 'fixtures' / 'criteria.json').read_text())
SHAPES = {'s': [(8, 16, 32, 32), (8, 32, 16, 16), (8, 64, 8, 8)],
          't': [(8, 24, 32, 32), (8, 48, 16, 16), (8, 96, 8, 8)],
          'mixed': [(8, 32, 16, 16), (8, 64, 8, 8), (8, 128, 4, 4), (8, 128, 4, 4)]}


def features(which, first_seed, grad, relu=True):
    drawn = [tensor(first_seed + i, *shape) for i, shape in enumerate(SHAPES[which])]
    return [(f.relu_() if relu else f).requires_grad_(grad) for f in drawn]


def logits():
    return (3 * tensor(1, 8, 100)).requires_grad_(), 3 * tensor(2, 8, 100), torch.arange(8) * 11 % 100


def kl(T):
    logit_s, logit_t, _ = logits()
    return zoo.DistillKL(T)(logit_s, logit_t), [logit_s], []


def semckd(student, case):
    feat_s, feat_t = features(student, 10, True), features('t', 30, False)
    part = fill_(zoo.SelfA(len(feat_s), len(feat_t), 8, [f.shape[1] for f in feat_s], [f.shape[1] for f in feat_t]))
    outputs = part(feat_s, feat_t)
    assert outputs[2][0].flatten().tolist() == pytest.approx(sum(case['attention'], []), rel=1e-4)
    assert outputs[2].mean(0).flatten().tolist() == pytest.approx(sum(case['attention_mean'], []), rel=1e-4)
    return zoo.SemCKDLoss()(*outputs), feat_s, [part]


def maps(call, student='s', teacher='t', relu=True):
    """call(student maps, teacher maps) returns (loss or losses, parts). Returns (loss, maps with a gradient, parts)."""
    feat_s, feat_t = features(student, 10, True, relu), features(teacher, 30, False, relu)
    loss, parts = call(feat_s, feat_t)
    used = [f for f, g in zip(feat_s, torch.autograd.grad(sum(as_list(loss)), feat_s, allow_unused=True,
                                                         retain_graph=True), strict=True) if g is not None]
    return sum(as_list(loss)), used, parts


def as_list(loss):
    return loss if isinstance(loss, list) else [loss]


def vectors(call):
    """call(f_s, f_t) returns (loss, parts). Returns (loss, [f_s], parts)."""
    f_s, f_t = tensor(50, 8, 64).requires_grad_(), tensor(51, 8, 96)
    loss, parts = call(f_s, f_t)
    return loss, [f_s], parts


def fitnet(case):
    shape_s, shape_t = (json.loads(case['inputs'][name].split('enumerate(')[1].split(')]')[0])[0]
                        for name in ('feat_s', 'feat_t'))
    f_s, f_t = tensor(10, *shape_s).relu_().requires_grad_(), tensor(30, *shape_t).relu_()
    part = fill_(zoo.ConvReg(shape_s, shape_t))
    return zoo.HintLoss()(*part(f_s, f_t)), [f_s], [part]


def vid(feat_s, feat_t):
    parts = []
    for f_s, f_t in zip(feat_s, feat_t, strict=False):
        part = fill_(zoo.VIDLoss(f_s.shape[1], f_t.shape[1], f_t.shape[1]))
        with torch.no_grad():
            part.log_scale.fill_(4.99325)
        parts.append(part)
    return [part(f_s, f_t) for part, f_s, f_t in zip(parts, feat_s, feat_t, strict=False)], parts


def correlation(f_s, f_t):
    parts = [fill_(zoo.LinearEmbed(64, 128)), fill_(zoo.LinearEmbed(96, 128))]
    return zoo.Correlation()(parts[0](f_s), parts[1](f_t)), parts


def irg_transform(case):
    f_s, f_t = tensor(50, 8, 64).requires_grad_(), tensor(51, 8, 96)
    feat_s, feat_t = features('s', 10, True)[:2], features('t', 30, False)[:2]
    return zoo.IRGLoss()(f_s, f_t, feat_s, feat_t), [f_s, *feat_s], []


def crd(case):
    f_s, f_t = tensor(50, 8, 64).requires_grad_(), tensor(51, 8, 96)
    criterion = zoo.CRDLoss(SimpleNamespace(s_dim=64, t_dim=96, feat_dim=32, n_data=200, nce_t=0.07, nce_m=0.5))
    fill_(criterion.embed_s)
    fill_(criterion.embed_t)
    contrast = criterion.contrast
    contrast.memory_v1.copy_(F.normalize(tensor(60, 200, 32)))
    contrast.memory_v2.copy_(F.normalize(tensor(61, 200, 32)))
    index = torch.arange(8) * 7
    contrast_index = (torch.arange(8)[:, None] * 7 + torch.arange(51)[None] * 3) % 200
    assert criterion(f_s, f_t, index, contrast_index).item() == pytest.approx(case['first_loss'], rel=1e-4)
    loss = criterion(f_s, f_t, index, contrast_index)
    assert contrast.Z.tolist() == pytest.approx(case['Z'], rel=1e-4)
    for memory in ('memory_v1', 'memory_v2'):
        assert digest(getattr(contrast, memory))['head'] == pytest.approx(case[f'{memory}_after']['head'], rel=1e-3)
    return loss, [f_s], [criterion.embed_s, criterion.embed_t]


def shapes(feats):
    return [f.shape for f in feats]


def abound(feat_s, feat_t):
    part = fill_(zoo.Connector(shapes(feat_s), shapes(feat_t)))
    return zoo.ABLoss(3)(part(feat_s), feat_t), [part]


def factor(feat_s, feat_t):
    parts = [fill_(zoo.Translator(feat_s[-1].shape, feat_t[-1].shape)), fill_(zoo.Paraphraser(feat_t[-1].shape))]
    return zoo.FactorTransfer()(parts[0](feat_s[-1]), parts[1](feat_t[-1], is_factor=True)), parts


def dkd(alpha, beta, temperature):
    logit_s, logit_t, target = logits()
    return zoo.dkd_loss(logit_s, logit_t, target, alpha=alpha, beta=beta, temperature=temperature), [logit_s], []


def plain(criterion):
    """A criterion of lists of maps, without trainable parts."""
    return lambda feat_s, feat_t: (criterion(feat_s, feat_t), [])


def last(criterion, dtype=torch.float32):
    """As plain, but on the last maps only."""
    return lambda feat_s, feat_t: (criterion(*([feats[-1].to(dtype)] for feats in (feat_s, feat_t))), [])


def test_hkd_weights_every_layer():
    """Layer i has weight 100 * 0.7^i. In float32 the loss equals the reference, which was computed in double."""
    f_s, f_t = (features(which, seed, False)[-1] for which, seed in (('s', 10), ('t', 30)))
    one = REFERENCE['HKD_one_layer_same']['loss']
    assert zoo.HKDLoss(100)([f_s], [f_t]).item() == pytest.approx(one, rel=1e-4)
    assert zoo.HKDLoss(100, 0.7)([f_s, f_s], [f_t, f_t]).item() == pytest.approx(1.7 * one, rel=1e-4)


# case -> function that takes the reference of the case and returns (loss, inputs with gradients, trainable parts)
CASES = {
    'KD_T1': lambda case: kl(1),
    'KD_T4': lambda case: kl(4),
    'AT_same': lambda case: maps(plain(zoo.Attention())),
    'AT_mixed': lambda case: maps(plain(zoo.Attention()), 'mixed'),
    'SP_same': lambda case: maps(last(zoo.Similarity())),
    'SP_mixed': lambda case: maps(last(zoo.Similarity()), 'mixed'),
    'VID_same': lambda case: maps(vid),
    'VID_mixed': lambda case: maps(vid, 'mixed'),
    'SemCKD_same': lambda case: semckd('s', case),
    'SemCKD_mixed': lambda case: semckd('mixed', case),
    # In double: HKD takes the square root of |a|^2 + |a|^2 - 2<a, a>, which is only rounding error.
    'HKD_one_layer_same': lambda case: maps(last(zoo.HKDLoss(init_weight=100), torch.float64)),
    'HKD_one_layer_mixed': lambda case: maps(last(zoo.HKDLoss(init_weight=100), torch.float64), 'mixed'),
    'FitNet_half': fitnet, 'FitNet_double': fitnet, 'FitNet_equal': fitnet, 'FitNet_larger': fitnet,
    'FitNet_smaller': fitnet,
    'RKD': lambda case: vectors(lambda f_s, f_t: (zoo.RKDLoss()(f_s, f_t), [])),
    'PKT': lambda case: vectors(lambda f_s, f_t: (zoo.PKT()(f_s, f_t), [])),
    'CC': lambda case: vectors(correlation),
    'IRG_vectors': lambda case: vectors(lambda f_s, f_t: (zoo.IRGLoss()(f_s, f_t, [], []), [])),
    'IRG_transform': irg_transform,
    'CRD_second_call': crd,
    'NST': lambda case: maps(plain(zoo.NSTLoss())),
    'FSP': lambda case: maps(lambda s, t: (zoo.FSP(shapes(s), shapes(t))(s, t), []), 's', 's'),
    'AB': lambda case: maps(abound, relu=False),
    'FT': lambda case: maps(factor),
    'KDSVD': lambda case: maps(plain(zoo.KDSVD()), 's', 's'),
    'DKD_a1_b8_T4': lambda case: dkd(1, 8, 4),
    'DKD_a1_b1_T1': lambda case: dkd(1, 1, 1),
}


def test_every_reference_case_is_here():
    assert set(CASES) == set(REFERENCE)


@pytest.mark.parametrize('name', CASES)
def test_criterion(name):
    want = REFERENCE[name]
    loss, inputs, parts = CASES[name](want)
    assert loss.item() == pytest.approx(want['loss'], rel=1e-4)
    loss.backward()
    for got, reference in zip((digest(x.grad) for x in inputs), want['grad'], strict=True):
        assert got['n'] == reference['n']
        assert got['rms'] == pytest.approx(reference['rms'], rel=1e-3)
        assert got['head'] == pytest.approx(reference['head'], abs=1e-3 * reference['rms'])
    for part, keys in zip(parts, want.get('state_dict_keys', []), strict=True):
        assert {k: list(v.shape) for k, v in part.state_dict().items()} == keys
    prefixed = len(parts) > 1
    for i, part in enumerate(parts):
        for key, parameter in part.named_parameters():
            rms = want['param_grad_rms'][f'{i}.{key}' if prefixed else key]
            if rms is None:
                assert parameter.grad is None
            else:       # the absolute tolerance is for gradients that are 0 in exact arithmetic
                got = parameter.grad.double().pow(2).mean().sqrt().item()
                assert got == pytest.approx(rms, rel=1e-3, abs=1e-6)


def test_semckd_has_a_regressor_for_each_pair():
    """Layers 1, 11 and 11, 1 too. Fewer layers have the names of the published code."""
    for layers in (3, 12):
        attention = zoo.SelfA(layers, layers, 4, [2] * layers, [2] * layers)
        names = {name for name, _ in attention.named_children() if name.startswith('regressor')}
        assert len(names) == layers ** 2 and (layers > 10 or 'regressor12' in names)
