"""CTKD, curriculum temperature."""
import math

import torch
from torch import nn


def reversal_strength(epoch: int, loops: int = 10) -> float:
    """The factor of the temperature's gradient in an epoch, counted from 1: from 0 to -1 within `loops` epochs.

    Published: loops 10 for CIFAR-100, loops 5 for ImageNet.
    """
    return -1 + (1 + math.cos(math.pi * min(epoch, loops) / loops)) / 2


class GlobalTemperature(nn.Module):
    """The trained part of CTKD: a temperature start + end * sigmoid(theta), with one parameter theta, initially 1.

    Li et al., AAAI 2023, Curriculum Temperature for Knowledge Distillation, arXiv:2211.16231.
    Published: start 1, end 20, for soft labels of weight 0.9; weight 1 for ImageNet.
    """

    def __init__(self, start: float = 1.0, end: float = 20.0):
        super().__init__()
        self.start, self.end = start, end
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, strength):
        """strength, from reversal_strength -> the temperature, a scalar, for distill_kl or dkd_loss.

        theta's gradient is multiplied by `strength`, which is negative: theta learns to increase the loss.
        """
        theta = self.theta.detach() + strength * (self.theta - self.theta.detach())
        return self.start + self.end * torch.sigmoid(theta)
