"""ShuffleNet V1 with three groups for small images (Zhang et al., CVPR 2018, arXiv:1707.01083)."""
import torch
import torch.nn.functional as F
from torch import nn

from .layers import StageNet, channel_shuffle, make_stage

STAGES = ((240, 4), (480, 8), (960, 4))     # output channels, units
STEM = 24


class Bottleneck(nn.Module):
    """Grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1. A stride-2 unit concatenates an average-pooled shortcut.

    Returns the sum or concatenation BEFORE its ReLU, which the net applies.
    """

    def __init__(self, inplanes: int, planes: int, stride: int, groups: int):
        super().__init__()
        self.stride = stride
        self.groups = 1 if inplanes == STEM else groups
        planes -= inplanes if stride == 2 else 0        # the shortcut has the other channels
        mid = planes // 4
        self.conv1 = nn.Conv2d(inplanes, mid, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, planes, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)

    def forward(self, x):
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return out + x
        return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1)


class ShuffleV1(StageNet):
    """Input (N, 3, H, W). Features: stem (N, 24, H, W), stages (N, 240, H/2, W/2), (N, 480, H/4, W/4),
    (N, 960, H/8, W/8), embedding (N, 960)."""

    def __init__(self, num_classes: int = 100, groups: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        inplanes = STEM
        for number, (planes, units) in enumerate(STAGES, start=1):
            setattr(self, f'layer{number}', make_stage(Bottleneck, inplanes, planes, units, 2, groups))
            inplanes = planes
        self.linear = nn.Linear(inplanes, num_classes)

    def get_bn_before_relu(self):
        raise NotImplementedError('ShuffleV1: a stride-2 unit concatenates its shortcut after the batch norm, '
                                  'so no single batch norm comes before the ReLU')

    def get_classifier(self):
        return self.linear


shufflenetv1_models = {'ShuffleV1': ShuffleV1}
