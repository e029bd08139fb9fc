"""Layers that several methods put between the student and the teacher."""
from collections import OrderedDict

from torch import nn


class ConvBN(nn.Sequential):
    """A convolution without bias that keeps the size, then batch norm: (N, c_in, H, W) -> (N, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1):
        super().__init__(OrderedDict(conv=nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False),
                                     bn=nn.BatchNorm2d(c_out)))
