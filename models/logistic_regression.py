"""Multinomial logistic regression with an L2 penalty: the linear classifier of a frozen embedding."""
import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = (1e5, 3e4, 1e4, 3e3, 1e3, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)      # the last is scikit-learn's C = 1
ROUGH, EXACT = 1e-5, 1e-7   # tolerance while a strength is chosen, and in the last fit
MOST_STEPS = 5000           # of a fit
IMAGES = 65536              # whose logits are in memory at a time


def fit(x: Tensor, target: Tensor, num_classes: int, strength: float, start: Tensor | None = None,
        tolerance: float = EXACT) -> Tensor:
    """The weights (classes, width + 1), bias last, for embeddings x float64 (N, width) and labels target int64 (N,).

    They minimise the sum of the images' cross-entropies plus strength / 2 times the sum of their squares without the
    bias, by L-BFGS over all images. strength: 1 / C of scikit-learn. start: weights to begin with; not given: zeros.
    tolerance: the fit ends when no derivative of the sum, divided by N, exceeds it.
    """
    weights = x.new_zeros(num_classes, x.shape[1] + 1) if start is None else start.clone()
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=MOST_STEPS, max_eval=2 * MOST_STEPS, tolerance_grad=tolerance,
                                  tolerance_change=1e-15, history_size=20, line_search_fn='strong_wolfe')

    def compute_loss():
        optimizer.zero_grad()
        penalty = strength / 2 * weights[:, :-1].square().sum() / len(x)
        penalty.backward()
        total = penalty.detach()
        for images, labels in zip(x.split(IMAGES), target.split(IMAGES), strict=True):
            loss = F.cross_entropy(logits(weights, images), labels, reduction='sum') / len(x)
            loss.backward()
            total = total + loss.detach()
        return total
    optimizer.step(compute_loss)
    return weights.detach()


def logits(weights: Tensor, x: Tensor) -> Tensor:
    """weights of `fit`, embeddings (N, width) -> logits (N, classes)."""
    return F.linear(x, weights[:, :-1], weights[:, -1])


def choose_strength(x: Tensor, target: Tensor, x_val: Tensor, target_val: Tensor, num_classes: int
                    ) -> tuple[float, Tensor]:
    """(the strength of STRENGTHS with the least cross-entropy on validation images, its weights up to ROUGH).

    Tried from strong to weak, each fit from the weights of the one before, until the cross-entropy rises.
    """
    best, least, weights = None, float('inf'), None
    for strength in STRENGTHS:
        weights = fit(x, target, num_classes, strength, weights, ROUGH)
        loss = F.cross_entropy(logits(weights, x_val), target_val).item()
        if loss > least:
            break
        best, least = (strength, weights), loss
    return best
