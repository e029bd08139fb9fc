"""ResNets for small images (He et al., CVPR 2016, arXiv:1512.03385), with a 3x3 stem and no max pool.

resnet8 to resnet110 are those of section 4.2, with 6n+2 layers in three stages. ResNet18_cifar to ResNet50_cifar are
the four-stage ImageNet nets; their parameter names are those of RepDistiller's published CIFAR teacher, ResNet50.
"""
from functools import partial

import torch.nn.functional as F
from torch import nn

from .layers import StageNet, conv_bn, kaiming_fan_out_, make_stage


class ThreeStageBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. Returns the sum BEFORE its ReLU, which the net applies."""

    def __init__(self, inplanes: int, planes: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inplanes, planes, 3, stride)
        self.conv2, self.bn2 = conv_bn(planes, planes, 3)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(*conv_bn(inplanes, planes, 1, stride))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x)) + shortcut


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. Returns the sum BEFORE its ReLU, which the net applies."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int):
        super().__init__()
        outplanes = planes * self.expansion
        self.shortcut = nn.Sequential()
        if stride != 1 or inplanes != outplanes:
            self.shortcut = nn.Sequential(*conv_bn(inplanes, outplanes, 1, stride))
        self.add_convolutions(inplanes, planes, stride)

    def add_convolutions(self, inplanes, planes, stride):
        self.conv1, self.bn1 = conv_bn(inplanes, planes, 3, stride)
        self.conv2, self.bn2 = conv_bn(planes, planes, 3)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + self.shortcut(x)


class Bottleneck(BasicBlock):
    """1x1, 3x3 and 1x1 convolutions, the last with four times as many channels, and a shortcut."""

    expansion = 4

    def add_convolutions(self, inplanes, planes, stride):
        self.conv1, self.bn1 = conv_bn(inplanes, planes, 1)
        self.conv2, self.bn2 = conv_bn(planes, planes, 3, stride)
        self.conv3, self.bn3 = conv_bn(planes, 4 * planes, 1)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + self.shortcut(x)


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
        self.conv1, self.bn1 = conv_bn(3, widths[0], 3)
        self.layer1 = make_stage(ThreeStageBlock, widths[0], widths[1], blocks, stride=1)
        self.layer2 = make_stage(ThreeStageBlock, widths[1], widths[2], blocks, stride=2)
        self.layer3 = make_stage(ThreeStageBlock, widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        kaiming_fan_out_(self)

    def get_bn_before_relu(self):
        return [stage[-1].bn2 for stage in self.layers]


class ResNetCifar(StageNet):
    """`blocks`: how many of `block` each stage has.

    Input (N, 3, H, W). With e the block's expansion, features: stem (N, 64, H, W), stages (N, 64e, H, W),
    (N, 128e, H/2, W/2), (N, 256e, H/4, W/4), (N, 512e, H/8, W/8), embedding (N, 512e).
    """

    classifier_name = 'linear'

    def __init__(self, block: type, blocks: tuple, num_classes: int = 100):
        super().__init__()
        e = block.expansion
        self.conv1, self.bn1 = conv_bn(3, 64, 3)
        self.layer1 = make_stage(block, 64, 64, blocks[0], stride=1)
        self.layer2 = make_stage(block, 64 * e, 128, blocks[1], stride=2)
        self.layer3 = make_stage(block, 128 * e, 256, blocks[2], stride=2)
        self.layer4 = make_stage(block, 256 * e, 512, blocks[3], stride=2)
        self.linear = nn.Linear(512 * e, num_classes)
        kaiming_fan_out_(self)

    def get_bn_before_relu(self):
        return [getattr(stage[-1], 'bn3', stage[-1].bn2) for stage in self.layers]


NARROW, X4, DOUBLE = (16, 16, 32, 64), (32, 64, 128, 256), (64, 128, 256, 512)
cifar_resnet_models = {f'resnet{depth}': partial(ResNet, depth, NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)}
cifar_resnet_models |= {'resnet8x4': partial(ResNet, 8, X4), 'resnet32x4': partial(ResNet, 32, X4),
                        'resnet8x4_double': partial(ResNet, 8, DOUBLE),
                        'ResNet18_cifar': partial(ResNetCifar, BasicBlock, (2, 2, 2, 2)),
                        'ResNet34_cifar': partial(ResNetCifar, BasicBlock, (3, 4, 6, 3)),
                        'ResNet50_cifar': partial(ResNetCifar, Bottleneck, (3, 4, 6, 3))}
