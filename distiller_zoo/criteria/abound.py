"""AB, activation boundaries."""
import torch.nn.functional as F
from torch import nn

from .common import pool_to
from .hint import ConvReg


class Connector(nn.Module):
    """The trained part of AB: a ConvReg for each pair of layers, from the student's size and channels to the teacher's.

    s_shapes, t_shapes: the (N, C, H, W) of the layers, paired in order. A pair of equal shapes needs no layer.
    """

    def __init__(self, s_shapes: list, t_shapes: list):
        super().__init__()
        self.connectors = nn.ModuleList(
            nn.Identity() if s[1:] == t[1:] else ConvReg(s, t, relu=False)
            for s, t in zip(s_shapes, t_shapes, strict=False))

    def forward(self, g_s: list):
        """The student's pre-activations, a list of (N, C, H, W) -> a list of maps with the teacher's channels."""
        return [f if isinstance(connector, nn.Identity) else connector.bn(connector.conv(f))
                for connector, f in zip(self.connectors, g_s, strict=False)]


class ABLoss(nn.Module):
    """Squared hinge loss on the student's pre-activations, with the sign of the teacher's as the label.

    feat_num: number of layers; each layer has twice the weight of the one before it, and the last has weight 1. The
    authors train with this loss alone in a first stage, then with labels and soft labels.
    Heo et al., AAAI 2019, Knowledge Transfer via Distillation of Activation Boundaries, arXiv:1811.03233.
    Published: weight 1, for a stage with this loss alone.
    """

    def __init__(self, feat_num: int, margin: float = 1.0):
        super().__init__()
        self.weights = [2.0 ** (i - feat_num + 1) for i in range(feat_num)]
        self.margin = margin

    def forward(self, g_s: list, g_t: list):
        """Pre-activations of both nets, lists of (N, C, H, W), equal C in a pair -> a list of scalars, one a pair.

        The teacher's map is average-pooled to the student's size.
        """
        return [3 / 1000 * weight * self.hinge(f_s, pool_to(f_t, f_s.shape[-1])) / len(f_s)
                for weight, f_s, f_t in zip(self.weights, g_s, g_t, strict=False)]

    def hinge(self, f_s, f_t):
        sign = (f_t > 0).to(f_s.dtype) * 2 - 1
        return F.relu(self.margin - sign * f_s).pow(2).sum()
