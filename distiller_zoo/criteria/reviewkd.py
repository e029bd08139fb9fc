"""ReviewKD, knowledge review."""
import torch
import torch.nn.functional as F
from torch import nn

from .common import ConvBN, batch_mean


class HCLLoss(nn.Module):
    """Hierarchical context loss: mean squared errors of maps, and of the same maps average-pooled to 4, 2 and 1.

    Chen et al., CVPR 2021, Distilling Knowledge via Knowledge Review, arXiv:2104.09044.
    Published: weight 5 and a warm-up over 20 epochs for CIFAR-100, weight 1 for ImageNet.
    """

    levels = (4, 2, 1)

    def forward(self, fused: list, feats_t: list, weights=None):
        """The maps of ReviewStack and of the teacher, lists of equal shapes (N, C, H, W) -> scalar, their sum.

        Each level has half the weight of the one before it; these weights sum to 1. weights: a factor for each image,
        (N,), such as those of entropy_weights.
        """
        return sum(self.pair_loss(f_s, f_t, weights) for f_s, f_t in zip(fused, feats_t, strict=True))

    def pair_loss(self, f_s, f_t, weights):
        loss, level_weights = squared_error(f_s, f_t, weights), [1.0]
        for size in (size for size in self.levels if size < f_s.shape[2]):
            level_weights.append(level_weights[-1] / 2)
            pooled = (F.adaptive_avg_pool2d(f, size) for f in (f_s, f_t))
            loss = loss + level_weights[-1] * squared_error(*pooled, weights)
        return loss / sum(level_weights)


def squared_error(f_s, f_t, weights):
    """Maps (N, C, H, W), weights (N,) of the images or None -> scalar, the mean squared error."""
    if weights is None:
        return F.mse_loss(f_s, f_t)
    return batch_mean(F.mse_loss(f_s, f_t, reduction='none').flatten(1).mean(1), weights)


class ABF(nn.Module):
    """Attention-based fusion of a student's map with the residual of the next deeper level.

    c_s, mid, c_t: channels of the student, of the fusion, of the teacher. size_s, size_t: heights of both maps.
    """

    def __init__(self, c_s: int, mid: int, c_t: int, size_s: int, size_t: int, deepest: bool):
        super().__init__()
        self.size_s, self.size_t = size_s, size_t
        self.reduce, self.out = ConvBN(c_s, mid), ConvBN(mid, c_t, 3)
        for layer in (self.reduce, self.out):
            nn.init.kaiming_uniform_(layer.conv.weight, a=1)
        self.attention = None if deepest else nn.Conv2d(2 * mid, 2, 1)

    def forward(self, x, residual):
        """The student's map, the deeper level's residual -> (the map to compare with the teacher's, the residual)."""
        x = self.reduce(x)
        if self.attention is not None:
            residual = _resize(residual, self.size_s)
            weight = torch.sigmoid(self.attention(torch.cat([x, residual], 1)))
            x = x * weight[:, :1] + residual * weight[:, 1:]
        x = _resize(x, self.size_t)
        return self.out(x), x


def _resize(x, size):
    return x if x.shape[-1] == size else F.interpolate(x, size=(size, size), mode='nearest')


class ReviewStack(nn.Module):
    """The trained part of ReviewKD: an ABF for each pair of levels, deep to shallow.

    shapes_s, shapes_t: (C, H, W) of each level, shallow to deep; the last is the embedding, a map of 1x1.
    """

    def __init__(self, shapes_s: list, shapes_t: list):
        super().__init__()
        mid = min(512, shapes_s[-1][0])
        self.abfs = nn.ModuleList(ABF(s[0], mid, t[0], s[1], t[1], deepest=i == 0)
                                  for i, (s, t) in enumerate(zip(shapes_s[::-1], shapes_t[::-1], strict=True)))

    def forward(self, feats_s: list):
        """Maps (N, C, H, W), shallow to deep -> the fused maps, of the teacher's shapes, in the same order."""
        fused, residual = [], None
        for abf, f in zip(self.abfs, feats_s[::-1], strict=True):
            out, residual = abf(f, residual)
            fused.append(out)
        return fused[::-1]
