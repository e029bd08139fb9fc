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
    """Distances between classes, such as cka_cost's, (classes, classes) -> costs below 1 for WKDLogitLoss."""
    return 1 - torch.exp(-distance)


def weight_factor(epoch: int, epochs: int, start: int) -> float:
    """The factor of the distance's weight in an epoch, counted from 1.

    It is 1 up to `start`, and falls from there by half a cosine to 0 in the last epoch.
    """
    return (1 + math.cos(math.pi * max(0, epoch - start) / max(1, epochs - start))) / 2


class WKDLogitLoss(nn.Module):
    """The true class as in NKDLoss, and the Wasserstein distance between the probabilities of the other classes.

    cost: (classes, classes), of moving probability from one class to another: what transport_cost returns. weight: that
    of the distance, which is the one of `iterations` of Sinkhorn's algorithm, regularised by reg; the gradient goes
    through all of them.
    Lv, Yang and Li, NeurIPS 2024, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation,
    arXiv:2412.08139.
    Published: temperature 8, weight 600 and weight_factor's start 150 for CIFAR-100; temperature 2, weight 30, start 0
    for ImageNet. The whole loss has weight 1.
    """

    def __init__(self, cost, temperature: float, weight: float, reg: float = 0.05, iterations: int = 10):
        super().__init__()
        self.temperature, self.reg, self.iterations = temperature, reg, iterations
        self.register_buffer('cost', cost)
        self.register_buffer('weight', torch.tensor(float(weight)), persistent=False)

    def forward(self, logits_s, logits_t, target):
        """Logits (N, classes) of both nets, target (N,) -> scalar."""
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
