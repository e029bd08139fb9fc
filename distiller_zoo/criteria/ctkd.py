"""CTKD: the temperature learns against the student, more so from epoch to epoch."""
import math

import torch
from torch import nn


def reversal_strength(epoch: int, loops: int = 10) -> float:
    """What the temperature's gradient is multiplied by in an epoch, counted from 1: from 0 to -1 in `loops` epochs."""
    return -1 + (1 + math.cos(math.pi * min(epoch, loops) / loops)) / 2


class GlobalTemperature(nn.Module):
    """One trainable number: T = start + end * sigmoid(theta), theta at first 1."""

    def __init__(self, start: float = 1.0, end: float = 20.0):
        super().__init__()
        self.start, self.end = start, end
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, strength):
        """A number, or a scalar -> the temperature, a scalar, whose gradient reaches theta times `strength`."""
        theta = self.theta.detach() + strength * (self.theta - self.theta.detach())
        return self.start + self.end * torch.sigmoid(theta)
