"""Criteria and their trainable parts against the reference numbers of tests/fixtures/criteria.json."""
import json
from pathlib import Path

import pytest
import torch
from fixtures.recipe import digest, fill_, tensor

import distiller_zoo as zoo

REFERENCE = json.loads((Path(__file__).parent / 'fixtures' / 'criteria.json').read_text())
SHAPES = {'s': [(8, 16, 32, 32), (8, 32, 16, 16), (8, 64, 8, 8)],
          't': [(8, 24, 32, 32), (8, 48, 16, 16), (8, 96, 8, 8)],
          'mixed': [(8, 32, 16, 16), (8, 64, 8, 8), (8, 128, 4, 4), (8, 128, 4, 4)]}


def features(which, first_seed, grad):
    return [tensor(first_seed + i, *shape).relu_().requires_grad_(grad) for i, shape in enumerate(SHAPES[which])]


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


# case -> function of the case's reference that returns (loss, inputs with gradients, trainable parts)
CASES = {
    'KD_T1': lambda case: kl(1),
    'KD_T4': lambda case: kl(4),
    'SemCKD_same': lambda case: semckd('s', case),
    'SemCKD_mixed': lambda case: semckd('mixed', case),
}


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
            else:       # what is zero in exact arithmetic is compared with the loss, not with itself
                got = parameter.grad.double().pow(2).mean().sqrt().item()
                assert got == pytest.approx(rms, rel=1e-3, abs=1e-6)
