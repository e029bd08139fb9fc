"""CIFAR ResNets of He et al., CVPR 2016 (arXiv:1512.03385), section 4.2: 6n+2 layers in three stages."""
from functools import partial

import torch.nn.functional as F
from torch import nn

from .layers import StageNet, kaiming_fan_out_, make_stage


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. Returns the sum BEFORE its ReLU, which the net applies."""

    def __init__(self, inplanes: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False),
                                            nn.BatchNorm2d(planes))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x)) + shortcut


class ResNet(StageNet):
    """`depth` = 6n+2 layers; `widths` are the channels of the stem and the three stages.

    Input (N, 3, H, W). Features: stem (N, w0, H, W), stages (N, w1, H, W), (N, w2, H/2, W/2), (N, w3, H/4, W/4),
    embedding (N, w3).
    """

    def __init__(self, depth: int, widths: tuple, num_classes: int = 100):
        super().__init__()
        blocks, remainder = divmod(depth - 2, 6)
        if remainder or blocks < 1:
            raise ValueError(f'depth {depth}: a CIFAR ResNet has 6n+2 layers')
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = make_stage(BasicBlock, widths[0], widths[1], blocks, stride=1)
        self.layer2 = make_stage(BasicBlock, widths[1], widths[2], blocks, stride=2)
        self.layer3 = make_stage(BasicBlock, widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        kaiming_fan_out_(self)

    def get_bn_before_relu(self):
        """The last batch norm of each stage."""
        return [stage[-1].bn2 for stage in self.layers]

    def get_classifier(self):
        return self.fc


NARROW, X4, DOUBLE = (16, 16, 32, 64), (32, 64, 128, 256), (64, 128, 256, 512)
cifar_resnet_models = {f'resnet{depth}': partial(ResNet, depth, NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)}
cifar_resnet_models |= {'resnet8x4': partial(ResNet, 8, X4), 'resnet32x4': partial(ResNet, 32, X4),
                        'resnet8x4_double': partial(ResNet, 8, DOUBLE)}
