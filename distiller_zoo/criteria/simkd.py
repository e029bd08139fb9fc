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
    """The trained part of SimKD: (N, c_s, H, W) -> (N, c_t, H, W), by 1x1, 3x3 and 1x1 convolutions.

    There are c_t / factor channels between them; batch norm and ReLU follow each. Its input is the student's map before
    pooling. The loss is the mean squared error of its output and the teacher's map; the larger is average-pooled first.
    To predict, the teacher's classifier reads the mean of its output.
    Chen et al., CVPR 2022, Knowledge Distillation with the Reused Teacher Classifier, arXiv:2203.14001.
    Published: weight 1, without cross-entropy and soft labels; factor 2.
    """

    def __init__(self, c_s: int, c_t: int, factor: int = 2):
        mid = max(1, c_t // factor)
        super().__init__(*(layer for c_in, c_out, kernel in ((c_s, mid, 1), (mid, mid, 3), (mid, c_t, 1))
                           for layer in (ConvBN(c_in, c_out, kernel), nn.ReLU(inplace=True))))
