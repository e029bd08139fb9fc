"""AB: the student's neurons learn where the teacher's switch on, then the task."""
import torch.nn.functional as F
from torch import nn

from .hint import ConvReg


class Connector(nn.Module):
    """A ConvReg without ReLU for each pair of layers, in order; none where the shapes are equal.

    s_shapes, t_shapes: the layers' (N, C, H, W).
    """

    def __init__(self, s_shapes: list, t_shapes: list):
        super().__init__()
        self.connectors = nn.ModuleList(
            nn.Identity() if s[1:] == t[1:] else ConvReg(s, t, relu=False)
            for s, t in zip(s_shapes, t_shapes, strict=False))

    def forward(self, g_s: list):
        """The student's maps, with the teacher's channels."""
        return [f if isinstance(connector, nn.Identity) else connector.bn(connector.conv(f))
                for connector, f in zip(self.connectors, g_s, strict=False)]


class ABLoss(nn.Module):
    """Heo et al., AAAI 2019, Knowledge Transfer via Distillation of Activation Boundaries, arXiv:1811.03233.

    feat_num: how many layers; the last counts twice as much as the one before it, and so on.
    """

    def __init__(self, feat_num: int, margin: float = 1.0):
        super().__init__()
        self.weights = [2.0 ** (i - feat_num + 1) for i in range(feat_num)]
        self.margin = margin

    def forward(self, g_s: list, g_t: list):
        """Lists of pre-activations of one shape a pair -> list of scalars."""
        return [3 / 1000 * weight * self.pair(f_s, f_t) / len(f_s)
                for weight, f_s, f_t in zip(self.weights, g_s, g_t, strict=False)]

    def pair(self, f_s, f_t):
        """Squared shortfall of the student from the margin, on the side of 0 where the teacher is, summed."""
        if f_s.shape[-1] != f_t.shape[-1]:
            f_t = F.adaptive_avg_pool2d(f_t, f_s.shape[-1])
        side = (f_t > 0).to(f_s.dtype) * 2 - 1
        return F.relu(self.margin - side * f_s).pow(2).sum()
