"""VGG nets with batch norm for small images (Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556)."""
from functools import partial

import torch.nn.functional as F
from torch import nn

from .base import Net
from .layers import kaiming_fan_out_

WIDTHS = (64, 128, 256, 512, 512)
CONVS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def _block(inplanes, planes, convs):
    """conv, BN, ReLU, ... conv, BN. The net applies the block's last ReLU."""
    layers = []
    for _ in range(convs):
        layers += [nn.Conv2d(inplanes, planes, 3, padding=1), nn.BatchNorm2d(planes), nn.ReLU(inplace=True)]
        inplanes = planes
    return nn.Sequential(*layers[:-1])


class VGG(Net):
    """Five convolution blocks of WIDTHS channels.

    Input (N, 3, H, W), H = W = 32 or 64. Features: each block's output after its ReLU, (N, 64, H, W) to
    (N, 512, H/8, W/8), then the embedding (N, 512). 64-pixel input is pooled once more before the last block.
    """

    classifier_name = 'classifier'

    def __init__(self, convs: tuple, num_classes: int = 100):
        super().__init__()
        inplanes = 3
        for i, (planes, count) in enumerate(zip(WIDTHS, convs, strict=True)):
            setattr(self, f'block{i}', _block(inplanes, planes, count))
            inplanes = planes
        self.classifier = nn.Linear(512, num_classes)
        kaiming_fan_out_(self, linear_std=0.01)

    def get_bn_before_relu(self):
        return [block[-1] for block in (self.block1, self.block2, self.block3, self.block4)]

    def stages(self, x, preact=False):
        pooled_blocks = 4 if x.shape[2] == 64 else 3
        maps = []
        for i, block in enumerate((self.block0, self.block1, self.block2, self.block3, self.block4)):
            if 0 < i <= pooled_blocks:
                x = F.max_pool2d(x, 2)
            before = self.run_block(block, x)
            x = F.relu(before)
            maps.append(before if preact and i else x)     # block 0 is the stem: always after its ReLU
        return maps, x


vgg_models = {f'vgg{depth}': partial(VGG, convs) for depth, convs in CONVS.items()}
