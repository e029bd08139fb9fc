"""OFD: the student's pre-activations learn the teacher's, where those pass the ReLU or the student's are too large."""
import math

import torch
import torch.nn.functional as F
from torch import nn


@torch.no_grad()
def ofd_margin(bn: nn.BatchNorm2d) -> torch.Tensor:
    """(C,): the mean of the negative part of what a batch norm gives, a normal distribution for each channel.

    Where negative values are rarer than one in a thousand, three deviations below 0.
    """
    mean, deviation = bn.bias, bn.weight.abs()
    normal = torch.distributions.Normal(0.0, 1.0)
    z = -mean / deviation.clamp(min=1e-12)
    negative = normal.cdf(z)
    density = (-z ** 2 / 2).exp() / math.sqrt(2 * math.pi)
    return torch.where(negative > 0.001, mean - deviation * density / negative.clamp(min=1e-12), -3 * deviation)


class OFDLoss(nn.Module):
    """Squared distance of pre-activations, where the teacher's pass the ReLU or the student's are too large.

    margins: (C,) of each stage, what ofd_margin returns. The last stage counts twice as much as the one before it, and
    so on.
    Heo et al., ICCV 2019, A Comprehensive Overhaul of Feature Distillation, arXiv:1904.01866.
    Published: weight 0.001 for CIFAR-100, weight 0.0001 for ImageNet.
    """

    def __init__(self, margins: list):
        super().__init__()
        for i, margin in enumerate(margins):
            self.register_buffer(f'margin{i}', margin.view(1, -1, 1, 1))

    def forward(self, feats_s: list, feats_t: list):
        """Lists of pre-activations (N, C, H, W), shallow to deep -> scalar, divided by N.

        A trained ConvBN gives each of the student's maps the teacher's channels. The teacher's maps are average-pooled
        to the student's size.
        """
        last = len(feats_s) - 1
        return sum(self.pair(f, g, getattr(self, f'margin{i}')) / 2 ** (last - i)
                   for i, (f, g) in enumerate(zip(feats_s, feats_t, strict=True)))

    def pair(self, x, g, margin):
        if x.shape[-1] != g.shape[-1]:
            g = F.adaptive_avg_pool2d(g, x.shape[-1])
        goal = torch.maximum(g, margin)
        counts = (g > 0) | (x > goal)       # a negative goal is only an upper bound
        return ((x - goal).pow(2) * counts).sum() / len(x)
