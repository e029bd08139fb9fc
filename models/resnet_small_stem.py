"""ImageNet-size ResNets (He et al., CVPR 2016, arXiv:1512.03385) with a 3x3 stem and no max pool, for small images.

The parameter names are those of RepDistiller's published CIFAR teacher, ResNet50.
"""
import torch.nn.functional as F
from torch import nn

from .base import Net, run_stages
from .initialize import kaiming_fan_out_


class _Block(nn.Module):
    """What both blocks share: a shortcut, and the sum returned BEFORE its ReLU, which the net applies."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int):
        super().__init__()
        self.shortcut = nn.Sequential()
        outplanes = planes * self.expansion
        if stride != 1 or inplanes != outplanes:
            self.shortcut = nn.Sequential(nn.Conv2d(inplanes, outplanes, 1, stride, bias=False),
                                          nn.BatchNorm2d(outplanes))


class BasicBlock(_Block):
    """Two 3x3 convolutions."""

    def __init__(self, inplanes: int, planes: int, stride: int):
        super().__init__(inplanes, planes, stride)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    @property
    def last_bn(self):
        return self.bn2

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + self.shortcut(x)


class Bottleneck(_Block):
    """1x1, 3x3 and 1x1 convolutions, four times as many channels at the end."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int):
        super().__init__(inplanes, planes, stride)
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)

    @property
    def last_bn(self):
        return self.bn3

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + self.shortcut(x)


class ResNetCifar(Net):
    """`blocks` a stage of `block`.

    Input (N, 3, H, W). With e the block's expansion, features: stem (N, 64, H, W), stages (N, 64e, H, W),
    (N, 128e, H/2, W/2), (N, 256e, H/4, W/4), (N, 512e, H/8, W/8), embedding (N, 512e).
    """

    def __init__(self, block: type, blocks: tuple, num_classes: int = 100):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inplanes = 64
        for number, (planes, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), start=1):
            stage = []
            for i in range(count):
                stage.append(block(inplanes, planes, stride=2 if number > 1 and i == 0 else 1))
                inplanes = planes * block.expansion
            setattr(self, f'layer{number}', nn.Sequential(*stage))
        self.linear = nn.Linear(inplanes, num_classes)
        kaiming_fan_out_(self)

    def get_bn_before_relu(self):
        """The last batch norm of each stage."""
        return [stage[-1].last_bn for stage in (self.layer1, self.layer2, self.layer3, self.layer4)]

    def get_classifier(self):
        return self.linear

    def stages(self, x, preact=False):
        x = F.relu(self.bn1(self.conv1(x)))
        return run_stages((self.layer1, self.layer2, self.layer3, self.layer4), x, preact)


def ResNet18_cifar(num_classes: int = 100):
    return ResNetCifar(BasicBlock, (2, 2, 2, 2), num_classes)


def ResNet34_cifar(num_classes: int = 100):
    return ResNetCifar(BasicBlock, (3, 4, 6, 3), num_classes)


def ResNet50_cifar(num_classes: int = 100):
    return ResNetCifar(Bottleneck, (3, 4, 6, 3), num_classes)


resnet_small_stem_models = {net.__name__: net for net in (ResNet18_cifar, ResNet34_cifar, ResNet50_cifar)}
