"""MobileNetV2 of half width for small images (Sandler et al., CVPR 2018, arXiv:1801.04381)."""
from torch import nn

from .base import Net
from .layers import conv_bn, kaiming_fan_out_, make_stage

# expansion, output channels at full width, blocks, stride of the first block
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
FEATURE_GROUPS = (1, 2, 4, 6)


def _conv_bn_relu(inplanes, planes, kernel, stride=1, groups=1):
    return [*conv_bn(inplanes, planes, kernel, stride, groups), nn.ReLU(inplace=True)]


class InvertedResidual(nn.Module):
    """1x1 expansion (kept when it expands by 1), 3x3 depthwise, linear 1x1 projection."""

    def __init__(self, inplanes: int, planes: int, stride: int, expansion: int):
        super().__init__()
        hidden = inplanes * expansion
        self.residual = stride == 1 and inplanes == planes
        self.conv = nn.Sequential(*_conv_bn_relu(inplanes, hidden, 1),
                                  *_conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
                                  *conv_bn(hidden, planes, 1))

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(Net):
    """Input (N, 3, H, W). For 32 pixels the features are (N, 16, 16, 16) after the stem, (N, 12, 16, 16),
    (N, 16, 8, 8), (N, 48, 4, 4), (N, 160, 2, 2) after block groups 1, 2, 4, 6, and the embedding (N, 1280).

    The blocks end without a ReLU, so `preact` changes nothing.
    """

    classifier_name = 'classifier'

    def __init__(self, num_classes: int = 100, width: float = 0.5):
        super().__init__()
        inplanes = int(32 * width)
        self.conv1 = nn.Sequential(*_conv_bn_relu(3, inplanes, 3, stride=2))
        self.blocks = nn.ModuleList()
        for expansion, channels, count, stride in GROUPS:
            planes = int(channels * width)
            self.blocks.append(make_stage(InvertedResidual, inplanes, planes, count, stride, expansion))
            inplanes = planes
        self.conv2 = nn.Sequential(*_conv_bn_relu(inplanes, 1280, 1))
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        kaiming_fan_out_(self, linear_std=0.01)

    def get_bn_before_relu(self):
        return [self.blocks[group][-1].conv[-1] for group in FEATURE_GROUPS]

    def stages(self, x, preact=False):
        x = self.run_block(self.conv1, x)
        maps = [x]
        for i, group in enumerate(self.blocks):
            for block in group:
                x = self.run_block(block, x)
            if i in FEATURE_GROUPS:
                maps.append(x)
        return maps, self.run_block(self.conv2, x)


mobilenetv2_models = {'MobileNetV2': MobileNetV2}
