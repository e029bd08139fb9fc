"""ShuffleNet V1 (Zhang et al., CVPR 2018, arXiv:1707.01083) and V2 (Ma et al., ECCV 2018, arXiv:1807.11164).

For small images: V1 with three groups, V2 of width 1. Both concatenate branches after their batch norms, so no single
batch norm comes before a stage's ReLU.
"""
import torch
import torch.nn.functional as F
from torch import nn

from .layers import StageNet, channel_shuffle, conv_bn, make_stage

V1_STAGES = ((240, 4), (480, 8), (960, 4))      # output channels, units
V2_STAGES = ((116, 4), (232, 8), (464, 4))
STEM, V2_LAST = 24, 1024


class Bottleneck(nn.Module):
    """1x1, shuffle, 3x3 depthwise, 1x1; for stride 2 an average-pooled shortcut. Returns the result BEFORE its ReLU."""

    def __init__(self, inplanes: int, planes: int, stride: int, groups: int):
        super().__init__()
        self.stride = stride
        self.groups = 1 if inplanes == STEM else groups
        planes -= inplanes if stride == 2 else 0        # the shortcut has the other channels
        mid = planes // 4
        self.conv1, self.bn1 = conv_bn(inplanes, mid, 1, groups=self.groups)
        self.conv2, self.bn2 = conv_bn(mid, mid, 3, stride, groups=mid)
        self.conv3, self.bn3 = conv_bn(mid, planes, 1, groups=groups)

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

    classifier_name = 'linear'

    def __init__(self, num_classes: int = 100, groups: int = 3):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, STEM, 1)
        inplanes = STEM
        for number, (planes, units) in enumerate(V1_STAGES, start=1):
            setattr(self, f'layer{number}', make_stage(Bottleneck, inplanes, planes, units, 2, groups))
            inplanes = planes
        self.linear = nn.Linear(inplanes, num_classes)


class BasicUnit(nn.Module):
    """Half of the channels pass; the other half goes through 1x1, 3x3 depthwise, 1x1."""

    def __init__(self, planes: int):
        super().__init__()
        half = planes // 2
        self.conv1, self.bn1 = conv_bn(half, half, 1)
        self.conv2, self.bn2 = conv_bn(half, half, 3, groups=half)
        self.conv3, self.bn3 = conv_bn(half, half, 1)

    def forward(self, x):
        """Returns (output, output before its last ReLU and shuffle)."""
        passed, out = x.chunk(2, 1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        before = self.bn3(self.conv3(out))
        return channel_shuffle(torch.cat([passed, F.relu(before)], 1), 2), torch.cat([passed, before], 1)


class DownUnit(nn.Module):
    """Two branches read the whole input and halve its size."""

    def __init__(self, inplanes: int, planes: int):
        super().__init__()
        half = planes // 2
        self.conv1, self.bn1 = conv_bn(inplanes, inplanes, 3, stride=2, groups=inplanes)
        self.conv2, self.bn2 = conv_bn(inplanes, half, 1)
        self.conv3, self.bn3 = conv_bn(inplanes, half, 1)
        self.conv4, self.bn4 = conv_bn(half, half, 3, stride=2, groups=half)
        self.conv5, self.bn5 = conv_bn(half, half, 1)

    def forward(self, x):
        """Returns (output, output before its last ReLU and shuffle)."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        before = torch.cat([left, right], 1)
        return channel_shuffle(F.relu(before), 2), before


class ShuffleV2(StageNet):
    """Input (N, 3, H, W). Features: stem (N, 24, H, W), stages (N, 116, H/2, W/2), (N, 232, H/4, W/4),
    (N, 464, H/8, W/8), embedding (N, 1024) after a last 1x1 convolution."""

    classifier_name = 'linear'

    def __init__(self, num_classes: int = 100):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, STEM, 1)
        inplanes = STEM
        for number, (planes, units) in enumerate(V2_STAGES, start=1):
            rest = (BasicUnit(planes) for _ in range(units - 1))
            setattr(self, f'layer{number}', nn.Sequential(DownUnit(inplanes, planes), *rest))
            inplanes = planes
        self.conv2, self.bn2 = conv_bn(inplanes, V2_LAST, 1)
        self.linear = nn.Linear(V2_LAST, num_classes)

    def stages(self, x, preact=False):
        x = self.run_block(self.stem, x)
        maps = [x]
        for stage in self.layers:
            for unit in stage:
                x, before = self.run_block(unit, x)
            maps.append(before if preact else x)
        return maps, F.relu(self.bn2(self.conv2(x)))


shufflenet_models = {'ShuffleV1': ShuffleV1, 'ShuffleV2': ShuffleV2}
