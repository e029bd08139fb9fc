"""Layers and operations that several criteria share."""
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBN(nn.Sequential):
    """A convolution that keeps the size, without bias, then batch norm: (N, c_in, H, W) -> (N, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1):
        super().__init__(OrderedDict(conv=nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False),
                                     bn=nn.BatchNorm2d(c_out)))


def standardize_logits(logits: Tensor) -> Tensor:
    """(N, classes) -> logits of mean 0 and standard deviation 1 in each row; a row of equal logits becomes 0.

    Sun et al., CVPR 2024, Logit Standardization in Knowledge Distillation, arXiv:2403.01427.
    """
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (1e-7 + logits.std(1, keepdim=True))


def kl_per_image(log_p_t, log_p_s):
    """Log-probabilities (..., classes) of teacher and student -> KL(teacher || student) of each row, (...)."""
    return (log_p_t.exp() * (log_p_t - log_p_s)).sum(-1)


def batch_mean(losses, weights=None):
    """Losses (N,) of the images -> scalar: their mean, each multiplied by its weight (N,) if weights are given."""
    return (losses if weights is None else losses * weights).mean()


def true_class_mask(logits, target):
    """Logits (N, classes), target (N,) -> bool (N, classes), True at the true class. one_hot would wait for a GPU."""
    return torch.arange(logits.shape[1], device=target.device) == target[:, None]


def pool_to(f, size: int):
    """(N, C, H, W) -> (N, C, size, size) by average pooling."""
    return f if f.shape[-1] == size else F.adaptive_avg_pool2d(f, size)


def match_size(f_s, f_t):
    """Average-pool the larger of two maps (N, C, H, W) to the size of the other. Returns both."""
    size = min(f_s.shape[-1], f_t.shape[-1])
    return pool_to(f_s, size), pool_to(f_t, size)


def normalized_gram(x):
    """(..., M, D) -> (..., M, M): the Gram matrix of the rows of x, each row of the matrix l2-normalised."""
    return F.normalize(x @ x.mT, dim=-1)


def squared_distances(x, eps: float):
    """(N, D) -> (N, N): squared Euclidean distances, at least eps, and exactly 0 on the diagonal."""
    square = x.pow(2).sum(1)
    distances = (square[:, None] + square - 2 * x @ x.t()).clamp(min=eps)
    return distances * (1 - torch.eye(len(x), device=x.device, dtype=x.dtype))


def cosine_probabilities(x, eps: float):
    """(N, D) -> (N, N): (1 + cosine) / 2 of each two samples, each row divided by its sum."""
    x = x / (x.norm(dim=1, keepdim=True) + eps)
    return row_probabilities((x @ x.t() + 1) / 2)


def row_probabilities(kernel):
    """Divide each row by its sum."""
    return kernel / kernel.sum(1, keepdim=True)
