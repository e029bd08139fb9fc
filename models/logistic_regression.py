"""Multinomial logistic regression with an L2 penalty: the linear classifier of a frozen embedding."""
import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = (1e5, 3e4, 1e4, 3e3, 1e3, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)      # the last is scikit-learn's C = 1
ROUGH, EXACT = 1e-5, 1e-7   # tolerances: during the selection of the strength, and in the last fit
MOST_STEPS = 5000           # of a fit
CHUNK = 65536               # images whose logits are in memory at a time


def fit(x: Tensor, target: Tensor, num_classes: int, strength: float, start: Tensor | None = None,
        tolerance: float = EXACT) -> Tensor:
    """Fit weights (classes, width + 1), bias last, to embeddings x float64 (N, width) and labels target int64 (N,).

    L-BFGS over all images minimises the sum of their cross-entropies plus strength / 2 times the sum of the squared
    weights without the bias. strength: 1 / C of scikit-learn. start: weights to begin with; not given: zeros.
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
        for images, labels in zip(x.split(CHUNK), target.split(CHUNK), strict=True):
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
    """Return the value in STRENGTHS with the smallest cross-entropy on the validation images, and its weights.

    Values are tried from strong to weak until the cross-entropy rises. Each fit has the tolerance ROUGH and starts from
    the weights before.
    """
    best, smallest, weights = None, float('inf'), None
    for strength in STRENGTHS:
        weights = fit(x, target, num_classes, strength, weights, ROUGH)
        loss = F.cross_entropy(logits(weights, x_val), target_val).item()
        if loss > smallest:
            break
        best, smallest = (strength, weights), loss
    return best
