"""WKD-F, Wasserstein distance between feature maps as Gaussians."""
import torch
import torch.nn.functional as F
from torch import nn

from .common import match_size


class WKDBottleneck(nn.Module):
    """The projector of WKD-F for ImageNet: three convolutions, then batch norm and ReLU.

    The kernels are 1x1, 3x3 and 1x1, without activation between them; width: channels in the middle.
    """

    def __init__(self, c_s: int, c_t: int, width: int = 256):
        super().__init__()
        self.conv1 = nn.Conv2d(c_s, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, c_t, 1)
        self.bn = nn.BatchNorm2d(c_t)

    def forward(self, f_s, f_t):
        """Maps (N, C, H, W) of both nets -> (the student's map, the teacher's map), of equal shapes.

        The larger map is average-pooled first.
        """
        f_s, f_t = match_size(f_s, f_t)
        return F.relu(self.bn(self.conv3(self.conv2(self.conv1(f_s))))), f_t


class WKDFeatureLoss(nn.Module):
    """Squared Wasserstein distance between Gaussians with diagonal covariance, one for each cell of a map.

    For each sample, channel and cell: mean_weight times the squared difference of the means, plus the squared
    difference of the standard deviations; summed over the channels, averaged over samples and cells. grid: cells a
    side, cut as in adaptive pooling. eps: added to the variances.
    Lv, Yang and Li, NeurIPS 2024, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation,
    arXiv:2412.08139.
    Published: weight 0.08, mean_weight 4, weight_factor's start 150 for CIFAR-100; weight 0.02, mean_weight 2, grid 4,
    start 0 for ImageNet.
    """

    def __init__(self, mean_weight: float = 4.0, eps: float = 1e-5, grid: int = 1):
        super().__init__()
        self.mean_weight, self.eps, self.grid = mean_weight, eps, grid

    def forward(self, f_s, f_t):
        """Two maps (N, C, H, W) of equal shapes -> scalar. Raises ValueError for cells of one position."""
        if self.grid >= min(f_s.shape[2:]):
            raise ValueError(f'WKDFeatureLoss: maps of {tuple(f_s.shape[2:])} positions have cells of one for '
                             f'grid={self.grid}, which have no deviation')
        (mean_s, std_s), (mean_t, std_t) = self.statistics(f_s), self.statistics(f_t)
        distance = self.mean_weight * (mean_s - mean_t).pow(2) + (std_s - std_t).pow(2)
        return distance.sum(2).mean()

    def statistics(self, f):
        """(N, C, H, W) -> means and standard deviations of all cells, (cells, N, C) each."""
        rows, columns = (cell_ranges(size, self.grid) for size in f.shape[2:])
        cells = [f[:, :, row, column] for row in rows for column in columns]
        variances, means = zip(*(torch.var_mean(cell, dim=(2, 3)) for cell in cells), strict=True)
        return torch.stack(means), (torch.stack(variances) + self.eps).sqrt()


def cell_ranges(size: int, grid: int) -> list[slice]:
    """The positions of each cell along one side of a map; cells overlap if `grid` does not divide `size`."""
    return [slice(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)]
