"""SimKD: the student's body learns the teacher's last map, and uses the teacher's classifier."""
import torch.nn.functional as F
from torch import nn

from .layers import ConvBN


def project(features, projector, size: int):
    """The map that the student's pooling sees (N, c_s, H, W) -> the teacher's; a larger one is pooled to `size`."""
    if features.shape[-1] > size:
        features = F.adaptive_avg_pool2d(features, size)
    return projector(features)


class SimKDProjector(nn.Sequential):
    """(N, c_s, H, W) -> (N, c_t, H, W): 1x1, 3x3 and 1x1 convolutions with c_t / factor channels between them, each
    followed by batch norm and ReLU."""

    def __init__(self, c_s: int, c_t: int, factor: int = 2):
        mid = max(1, c_t // factor)
        super().__init__(*(layer for c_in, c_out, kernel in ((c_s, mid, 1), (mid, mid, 3), (mid, c_t, 1))
                           for layer in (ConvBN(c_in, c_out, kernel), nn.ReLU(inplace=True))))
