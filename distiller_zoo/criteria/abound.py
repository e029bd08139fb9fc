"""AB: the student's neurons learn where the teacher's switch on, then the task."""
import torch.nn.functional as F
from torch import nn

from .hint import ConvReg


class Connector(nn.Module):
    """The trained part of AB: brings the student's maps to the teacher's sizes and channels, a ConvReg for each pair.

    s_shapes, t_shapes: the (N, C, H, W) of the layers, paired in order. Layers of equal shapes stay as they are.
    """

    def __init__(self, s_shapes: list, t_shapes: list):
        super().__init__()
        self.connectors = nn.ModuleList(
            nn.Identity() if s[1:] == t[1:] else ConvReg(s, t, relu=False)
            for s, t in zip(s_shapes, t_shapes, strict=False))

    def forward(self, g_s: list):
        """Lists of pre-activations (N, C, H, W) of the student -> list of maps with the teacher's channels."""
        return [f if isinstance(connector, nn.Identity) else connector.bn(connector.conv(f))
                for connector, f in zip(self.connectors, g_s, strict=False)]


class ABLoss(nn.Module):
    """How far the student's pre-activations are from a margin on the teacher's side of 0, squared and summed.

    feat_num: number of layers; the last counts twice as much as the one before it, and so on. The authors train with
    this loss alone in a first stage, then with the labels and the soft labels.
    Heo et al., AAAI 2019, Knowledge Transfer via Distillation of Activation Boundaries, arXiv:1811.03233.
    Published: weight 1, for a stage with this loss alone.
    """

    def __init__(self, feat_num: int, margin: float = 1.0):
        super().__init__()
        self.weights = [2.0 ** (i - feat_num + 1) for i in range(feat_num)]
        self.margin = margin

    def forward(self, g_s: list, g_t: list):
        """Lists of pre-activations (N, C, H, W), equal channels a pair -> list of scalars, one for each pair.

        A teacher's map of another size is average-pooled to the student's.
        """
        return [3 / 1000 * weight * self.pair(f_s, f_t) / len(f_s)
                for weight, f_s, f_t in zip(self.weights, g_s, g_t, strict=False)]

    def pair(self, f_s, f_t):
        """Squared shortfall of the student from the margin, on the side of 0 where the teacher is, summed."""
        if f_s.shape[-1] != f_t.shape[-1]:
            f_t = F.adaptive_avg_pool2d(f_t, f_s.shape[-1])
        side = (f_t > 0).to(f_s.dtype) * 2 - 1
        return F.relu(self.margin - side * f_s).pow(2).sum()
