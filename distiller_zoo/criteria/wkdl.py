"""WKD-L: the cheapest way to move the student's probabilities onto the teacher's, between classes that look alike."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from .nkd import true_class_loss


@torch.no_grad()
def cka_cost(features):
    """(classes, samples, channels) -> (classes, classes): 1 - linear CKA (Kornblith et al., ICML 2019,
    arXiv:1905.00414), sample by sample. The features are centred in place."""
    x = features.sub_(features.mean(1, keepdim=True))
    n, at_once = len(x), max(1, 2**26 // x.shape[2] ** 2)      # products of at most 256 MiB
    products = x.new_zeros(n, n)
    for i in range(n):
        for first in range(i, n, at_once):
            products[i, first:first + at_once] = (x[i].t() @ x[first:first + at_once]).pow(2).sum((1, 2))
    norms = products.diagonal().sqrt()
    products = products.triu() + products.triu(1).t()
    return 1 - products / (norms[:, None] * norms).clamp(min=1e-12)


def transport_cost(distance):
    """Distances between classes -> costs below 1."""
    return 1 - torch.exp(-distance)


def weight_factor(epoch: int, epochs: int, start: int) -> float:
    """1 up to epoch `start`; from there half a cosine to 0 in the last one."""
    return (1 + math.cos(math.pi * max(0, epoch - start) / max(1, epochs - start))) / 2


class WKDLogitLoss(nn.Module):
    """Lv, Yang and Li, NeurIPS 2024, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
    Distillation, arXiv:2412.08139.

    cost: (classes, classes), of moving probability from one class to another. The distance is that of `iterations` of
    Sinkhorn's algorithm, regularised by reg; the gradient goes through all of them.
    """

    def __init__(self, cost, temperature: float, weight: float, reg: float = 0.05, iterations: int = 10):
        super().__init__()
        self.temperature, self.reg, self.iterations = temperature, reg, iterations
        self.register_buffer('cost', cost)
        self.register_buffer('weight', torch.tensor(float(weight)), persistent=False)

    def forward(self, logits_s, logits_t, target):
        """Logits (N, classes), target (N,) -> scalar: the true class as in nkd + weight * distance of the others."""
        return true_class_loss(logits_s, logits_t, target) + self.weight * self.distance(logits_s, logits_t, target)

    def distance(self, logits_s, logits_t, target):
        # The true class is left out by a probability of 0, which Sinkhorn's algorithm keeps.
        true = torch.zeros_like(logits_s, dtype=torch.bool).scatter_(1, target[:, None], True)
        p, q = (F.softmax((logits / self.temperature).masked_fill(true, -torch.inf), dim=1)
                for logits in (logits_s, logits_t))
        cost = F.relu(self.cost) + 1e-8
        kernel = torch.exp(-cost / self.reg)
        u = (~true).to(p.dtype) / (p.shape[1] - 1)
        for _ in range(self.iterations):
            v = q / (u @ kernel + 1e-8)
            u = p / (v @ kernel.t() + 1e-8)
        return (u * (v @ (kernel * cost).t())).sum(1).mean()
