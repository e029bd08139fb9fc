"""Wide residual networks of Zagoruyko and Komodakis, BMVC 2016 (arXiv:1605.07146)."""
from collections import OrderedDict
from functools import partial

import torch.nn.functional as F
from torch import nn

from .base import Net
from .layers import kaiming_fan_out_, make_stage


class BasicBlock(nn.Module):
    """Pre-activation block: BN, ReLU, 3x3 conv, BN, ReLU, 3x3 conv. A 1x1 shortcut takes the activated input."""

    def __init__(self, inplanes: int, planes: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.convShortcut = None
        if inplanes != planes:
            self.convShortcut = nn.Conv2d(inplanes, planes, 1, stride, bias=False)

    def forward(self, x):
        active = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut


def _network_block(*args):
    return nn.Sequential(OrderedDict(layer=make_stage(BasicBlock, *args)))


def _normalised(bn: nn.BatchNorm2d, x):
    """bn(x), without a second update of its running statistics in training."""
    if bn.training:
        return F.batch_norm(x, None, None, bn.weight, bn.bias, training=True, eps=bn.eps)
    return bn(x)


class WideResNet(Net):
    """`depth` = 6n+4 layers, `widen` times 16, 32, 64 channels.

    Input (N, 3, H, W). Features: raw outputs of the stem (N, 16, H, W) and of the stages (N, 16k, H, W),
    (N, 32k, H/2, W/2), (N, 64k, H/4, W/4); the embedding (N, 64k) comes after the last BN and ReLU.
    """

    def __init__(self, depth: int, widen: int, num_classes: int = 100):
        super().__init__()
        count, remainder = divmod(depth - 4, 6)
        if remainder or count < 1:
            raise ValueError(f'depth {depth}: a wide ResNet has 6n+4 layers')
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.block1 = _network_block(widths[0], widths[1], count, 1)
        self.block2 = _network_block(widths[1], widths[2], count, 2)
        self.block3 = _network_block(widths[2], widths[3], count, 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        kaiming_fan_out_(self)
        nn.init.zeros_(self.fc.bias)

    activated = False       # the next stage applies the batch norm and the ReLU

    def get_bn_before_relu(self):
        return [self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1]

    def stages(self, x, preact=False):
        x = self.conv1(x)
        maps = [x]
        for stage in (self.block1, self.block2, self.block3):
            for block in stage.layer:
                x = self.run_block(block, x)
            maps.append(x)
        last = F.relu(self.bn1(x))
        if preact:
            maps[1:] = [_normalised(bn, f) for bn, f in zip(self.get_bn_before_relu(), maps[1:], strict=True)]
        return maps, last


wrn_models = {f'wrn_{d}_{k}': partial(WideResNet, d, k) for d, k in ((16, 1), (16, 2), (40, 1), (40, 2))}
