"""SimKD, the reused teacher classifier."""
from torch import nn

from .common import ConvBN, pool_to


def project(features, projector, size: int):
    """The student's map before pooling (N, c_s, H, W) -> the projector's output; a map above `size` is pooled first."""
    return projector(pool_to(features, min(size, features.shape[-1])))


class SimKDProjector(nn.Sequential):
    """The trained part of SimKD: 1x1, 3x3 and 1x1 convolutions, each with batch norm and ReLU.

    The input is the student's map before pooling: (N, c_s, H, W) -> (N, c_t, H, W). The inner convolutions have
    c_t / factor channels. The loss is the mean squared error of the output and the teacher's map; the larger of the two
    maps is average-pooled first. To predict, the teacher's classifier reads the pooled output.
    Chen et al., CVPR 2022, Knowledge Distillation with the Reused Teacher Classifier, arXiv:2203.14001.
    Published: weight 1, without cross-entropy and soft labels; factor 2.
    """

    def __init__(self, c_s: int, c_t: int, factor: int = 2):
        mid = max(1, c_t // factor)
        super().__init__(*(layer for c_in, c_out, kernel in ((c_s, mid, 1), (mid, mid, 3), (mid, c_t, 1))
                           for layer in (ConvBN(c_in, c_out, kernel), nn.ReLU(inplace=True))))
