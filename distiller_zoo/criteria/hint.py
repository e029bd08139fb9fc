"""FitNet, hints."""
import torch.nn.functional as F
from torch import nn

from .common import pool_to


class ConvReg(nn.Module):
    """The trained part of FitNet: a convolution to the teacher's size and channels, then batch norm and, if relu, ReLU.

    s_shape, t_shape: (N, C, H, W). The sizes s and t decide the kernel. s = 2t: 3x3 with stride 2. 2s = t: transposed
    4x4 with stride 2. s >= t: 1 + s - t. Otherwise 3x3, and the teacher's map is pooled to the student's size.
    """

    def __init__(self, s_shape: tuple, t_shape: tuple, relu: bool = True):
        super().__init__()
        c_s, s, c_t, t = s_shape[1], s_shape[2], t_shape[1], t_shape[2]
        if s == 2 * t:
            self.conv = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
        elif 2 * s == t:
            self.conv = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
        elif s >= t:
            self.conv = nn.Conv2d(c_s, c_t, 1 + s - t)
        else:
            self.conv = nn.Conv2d(c_s, c_t, 3, padding=1)
        self.bn = nn.BatchNorm2d(c_t)
        self.relu = relu

    def forward(self, f_s, f_t):
        """Maps (N, C, H, W) of both nets -> (the student's map, the teacher's map), of equal shapes."""
        f_s = self.bn(self.conv(f_s))
        return F.relu(f_s) if self.relu else f_s, pool_to(f_t, f_s.shape[-1])


class HintLoss(nn.Module):
    """Mean squared error of two maps.

    Romero et al., ICLR 2015, FitNets: Hints for Thin Deep Nets, arXiv:1412.6550.
    Published: weight 100.
    """

    def forward(self, f_s, f_t):
        """Two maps (N, C, H, W) of equal shapes, from ConvReg -> scalar."""
        return F.mse_loss(f_s, f_t)
