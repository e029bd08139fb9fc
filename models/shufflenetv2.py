"""ShuffleNet V2 of width 1 for small images (Ma et al., ECCV 2018, arXiv:1807.11164)."""
import torch
import torch.nn.functional as F
from torch import nn

from .base import Net
from .layers import channel_shuffle

STAGES = ((116, 4), (232, 8), (464, 4))     # output channels, units
STEM, LAST = 24, 1024


class BasicUnit(nn.Module):
    """Half of the channels pass; the other half goes through 1x1, 3x3 depthwise, 1x1."""

    def __init__(self, planes: int):
        super().__init__()
        half = planes // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x):
        """Returns (output, the same before its last ReLU and shuffle)."""
        kept, out = x.chunk(2, 1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        before = self.bn3(self.conv3(out))
        return channel_shuffle(torch.cat([kept, F.relu(before)], 1), 2), torch.cat([kept, before], 1)


class DownUnit(nn.Module):
    """Both branches see the whole input and halve its size."""

    def __init__(self, inplanes: int, planes: int):
        super().__init__()
        half = planes // 2
        self.conv1 = nn.Conv2d(inplanes, inplanes, 3, 2, 1, groups=inplanes, bias=False)
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv2 = nn.Conv2d(inplanes, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(inplanes, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x):
        """Returns (output, the same before its last ReLU and shuffle)."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        before = torch.cat([left, right], 1)
        return channel_shuffle(F.relu(before), 2), before


class ShuffleV2(Net):
    """Input (N, 3, H, W). Features: stem (N, 24, H, W), stages (N, 116, H/2, W/2), (N, 232, H/4, W/4),
    (N, 464, H/8, W/8), embedding (N, 1024) after a last 1x1 convolution."""

    def __init__(self, num_classes: int = 100):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        inplanes = STEM
        for number, (planes, units) in enumerate(STAGES, start=1):
            rest = (BasicUnit(planes) for _ in range(units - 1))
            setattr(self, f'layer{number}', nn.Sequential(DownUnit(inplanes, planes), *rest))
            inplanes = planes
        self.conv2 = nn.Conv2d(inplanes, LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(LAST)
        self.linear = nn.Linear(LAST, num_classes)

    def get_bn_before_relu(self):
        raise NotImplementedError('ShuffleV2: its units concatenate branches after the batch norm, '
                                  'so no single batch norm comes before the ReLU')

    def get_classifier(self):
        return self.linear

    def stages(self, x, preact=False):
        x = F.relu(self.bn1(self.conv1(x)))
        maps = [x]
        for stage in (self.layer1, self.layer2, self.layer3):
            for unit in stage:
                x, before = unit(x)
            maps.append(before if preact else x)
        return maps, F.relu(self.bn2(self.conv2(x)))


shufflenetv2_models = {'ShuffleV2': ShuffleV2}
