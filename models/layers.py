"""Layers and initial weights that several families of networks share."""
import math

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Net


class StageNet(Net):
    """conv1, bn1 and ReLU, then layer1, layer2, ...: stages of blocks that return their output BEFORE its last ReLU."""

    @property
    def layers(self) -> list[nn.Sequential]:
        return [module for name, module in self.named_children() if name.startswith('layer')]

    def stem(self, x):
        return F.relu(self.bn1(self.conv1(x)))

    def stages(self, x, preact=False):
        x = self.run_block(self.stem, x)
        maps = [x]
        for stage in self.layers:
            for block in stage:
                before = self.run_block(block, x)
                x = F.relu(before)
            maps.append(before if preact else x)
        return maps, x


def conv_bn(inplanes: int, planes: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple:
    """(a padded convolution without biases, its batch norm)."""
    conv = nn.Conv2d(inplanes, planes, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(planes)


def make_stage(block: type, inplanes: int, planes: int, count: int, stride: int, *args) -> nn.Sequential:
    """`count` blocks, each block(inplanes, planes, stride, *args), the first with `stride`."""
    outplanes = planes * getattr(block, 'expansion', 1)
    return nn.Sequential(block(inplanes, planes, stride, *args),
                         *(block(outplanes, planes, 1, *args) for _ in range(count - 1)))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` equal groups. x: (N, C, H, W), C divisible by groups."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def kaiming_fan_out_(net: nn.Module, linear_std: float | None = None) -> None:
    """Normal weights of variance 2 / fan_out for every convolution (He et al., ICCV 2015, arXiv:1502.01852).

    fan_out is kernel area times output channels, not divided by groups. Their biases become 0. With `linear_std`,
    linear layers get normal weights with this standard deviation and bias 0.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
            nn.init.zeros_(module.bias)
