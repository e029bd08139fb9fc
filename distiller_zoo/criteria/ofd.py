"""OFD, overhaul of feature distillation."""
import math

import torch
from torch import nn

from .common import pool_to


@torch.no_grad()
def ofd_margin(bn: nn.BatchNorm2d) -> torch.Tensor:
    """(C,): the mean of the negative outputs of a batch norm, taken as a normal distribution for each channel.

    Channels with fewer negative outputs than 0.1 % have a margin of -3 standard deviations.
    """
    mean, deviation = bn.bias, bn.weight.abs()
    z = -mean / deviation.clamp(min=1e-12)
    negative = torch.distributions.Normal(0.0, 1.0).cdf(z)
    density = (-z ** 2 / 2).exp() / math.sqrt(2 * math.pi)
    return torch.where(negative > 0.001, mean - deviation * density / negative.clamp(min=1e-12), -3 * deviation)


class OFDLoss(nn.Module):
    """Squared distance of pre-activations where the teacher's are positive or the student's exceed the target.

    margins: (C,) for each stage, from ofd_margin: the lowest target. Each stage has twice the weight of the one before
    it, and the last has weight 1.
    Heo et al., ICCV 2019, A Comprehensive Overhaul of Feature Distillation, arXiv:1904.01866.
    Published: weight 0.001 for CIFAR-100, weight 0.0001 for ImageNet.
    """

    def __init__(self, margins: list):
        super().__init__()
        for i, margin in enumerate(margins):
            self.register_buffer(f'margin{i}', margin.view(1, -1, 1, 1))

    def forward(self, feats_s: list, feats_t: list):
        """Lists of pre-activations (N, C, H, W), shallow to deep -> scalar, divided by N.

        A trained ConvBN maps each of the student's maps to the teacher's channels. The teacher's maps are
        average-pooled to the student's size.
        """
        last = len(feats_s) - 1
        return sum(self.distance(f_s, pool_to(f_t, f_s.shape[-1]), getattr(self, f'margin{i}')) / 2 ** (last - i)
                   for i, (f_s, f_t) in enumerate(zip(feats_s, feats_t, strict=True)))

    def distance(self, f_s, f_t, margin):
        target = torch.maximum(f_t, margin)
        mask = (f_t > 0) | (f_s > target)       # a negative target is only an upper bound
        return ((f_s - target).pow(2) * mask).sum() / len(f_s)
