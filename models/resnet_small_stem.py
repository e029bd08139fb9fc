"""ImageNet-size ResNets (He et al., CVPR 2016, arXiv:1512.03385) with a 3x3 stem and no max pool, for small images.

The parameter names are those of RepDistiller's published CIFAR teacher, ResNet50.
"""
from functools import partial

import torch.nn.functional as F
from torch import nn

from .layers import StageNet, kaiming_fan_out_, make_stage


class _Block(nn.Module):
    """Convolutions of the sizes `kernels`, and a shortcut. Returns the sum BEFORE its ReLU, which the net applies."""

    kernels, expansion = (), 1

    def __init__(self, inplanes: int, planes: int, stride: int):
        super().__init__()
        outplanes = planes * self.expansion
        self.shortcut = nn.Sequential()
        if stride != 1 or inplanes != outplanes:
            self.shortcut = nn.Sequential(nn.Conv2d(inplanes, outplanes, 1, stride, bias=False),
                                          nn.BatchNorm2d(outplanes))
        widths = [planes] * (len(self.kernels) - 1) + [outplanes]
        first_3x3 = self.kernels.index(3)
        for i, (kernel, width) in enumerate(zip(self.kernels, widths, strict=True)):
            conv = nn.Conv2d(inplanes, width, kernel, stride if i == first_3x3 else 1, kernel // 2, bias=False)
            setattr(self, f'conv{i + 1}', conv)
            setattr(self, f'bn{i + 1}', nn.BatchNorm2d(width))
            inplanes = width

    @property
    def last_bn(self):
        return getattr(self, f'bn{len(self.kernels)}')

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        if len(self.kernels) == 2:
            return self.bn2(self.conv2(out)) + self.shortcut(x)
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + self.shortcut(x)


class BasicBlock(_Block):
    kernels = (3, 3)


class Bottleneck(_Block):
    kernels, expansion = (1, 3, 1), 4


class ResNetCifar(StageNet):
    """`blocks` a stage of `block`.

    Input (N, 3, H, W). With e the block's expansion, features: stem (N, 64, H, W), stages (N, 64e, H, W),
    (N, 128e, H/2, W/2), (N, 256e, H/4, W/4), (N, 512e, H/8, W/8), embedding (N, 512e).
    """

    num_stages = 4

    def __init__(self, block: type, blocks: tuple, num_classes: int = 100):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        e = block.expansion
        self.layer1 = make_stage(block, 64, 64, blocks[0], stride=1)
        self.layer2 = make_stage(block, 64 * e, 128, blocks[1], stride=2)
        self.layer3 = make_stage(block, 128 * e, 256, blocks[2], stride=2)
        self.layer4 = make_stage(block, 256 * e, 512, blocks[3], stride=2)
        self.linear = nn.Linear(512 * e, num_classes)
        kaiming_fan_out_(self)

    def get_bn_before_relu(self):
        """The last batch norm of each stage."""
        return [stage[-1].last_bn for stage in self.layers]

    def get_classifier(self):
        return self.linear


resnet_small_stem_models = {'ResNet18_cifar': partial(ResNetCifar, BasicBlock, (2, 2, 2, 2)),
                            'ResNet34_cifar': partial(ResNetCifar, BasicBlock, (3, 4, 6, 3)),
                            'ResNet50_cifar': partial(ResNetCifar, Bottleneck, (3, 4, 6, 3))}
