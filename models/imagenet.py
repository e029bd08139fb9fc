"""ImageNet networks: torchvision's, behind the contract of base.py and with torchvision's parameter names."""
from functools import partial

import torch.nn.functional as F
from torch import nn
from torchvision.models import mobilenetv2, resnet, shufflenetv2, vgg

from .base import Net
from .layers import StageNet, conv_bn


def _before_relu(block, x):
    """block(x) of torchvision's ResNets, before its last ReLU."""
    shortcut = x if block.downsample is None else block.downsample(x)
    count = 3 if hasattr(block, 'conv3') else 2
    for i in range(1, count + 1):
        x = getattr(block, f'bn{i}')(getattr(block, f'conv{i}')(x))
        x = F.relu(x) if i < count else x
    return x + shortcut


class ResNet(StageNet, resnet.ResNet):
    """Features: after the max pool (N, 64, H/4, W/4), after layer1 to layer4, the pooled embedding."""

    def __init__(self, block, layers, num_classes: int = 1000, widen: int = 1, **kwargs):
        super().__init__(block, layers, num_classes=num_classes, **kwargs)
        if widen > 1:
            self._widen(block, layers, widen)

    def _widen(self, block, layers, widen):
        """Make the stem and every stage `widen` times as wide."""
        self.inplanes = 64 * widen
        self.conv1, self.bn1 = conv_bn(3, self.inplanes, 7, stride=2)
        for i, (planes, count) in enumerate(zip((64, 128, 256, 512), layers, strict=True), start=1):
            setattr(self, f'layer{i}', self._make_layer(block, planes * widen, count, stride=1 if i == 1 else 2))
        self.fc = nn.Linear(512 * widen * block.expansion, self.fc.out_features)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def get_bn_before_relu(self):
        return [getattr(stage[-1], 'bn3', stage[-1].bn2) for stage in self.layers]

    def embed(self, features):
        return self.avgpool(features).flatten(1)

    def stem(self, x):
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def stages(self, x, preact=False):
        x = self.run_block(self.stem, x)
        maps = [x]
        for stage in self.layers:
            for block in stage[:-1]:
                x = self.run_block(block, x)
            if preact:
                maps.append(self.run_block(partial(_before_relu, stage[-1]), x))
                x = F.relu(maps[-1])
            else:
                x = self.run_block(stage[-1], x)
                maps.append(x)
        return maps, x


class FeatureNet(Net):
    """A net of torchvision with `features` and a `classifier`. stage_ends: the numbers of the layers in feats."""

    classifier_name = 'classifier'

    def hidden(self, embedding):
        return self.classifier[:-1](embedding)

    def stages(self, x, preact=False):
        self.refuse_preact(preact)
        maps, start = [], 0
        for end in self.stage_ends:
            x = self.run_block(self.features[start:end + 1], x)
            maps.append(x)
            start = end + 1
        return maps, self.features[start:](x)


class VGG(FeatureNet, vgg.VGG):
    """Features: the end of each of the five stages after its ReLU, then the flattened 7x7 average pool."""

    num_features = 512

    def __init__(self, config: str, num_classes: int = 1000):
        super().__init__(vgg.make_layers(vgg.cfgs[config], batch_norm=True), num_classes=num_classes)
        self.stage_ends = [i - 1 for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]

    def embed(self, features):
        return self.avgpool(features).flatten(1)


class MobileNetV2(FeatureNet, mobilenetv2.MobileNetV2):
    """Features: after features[0], [3], [6], [13], [17], then the pooled embedding (N, 1280)."""

    stage_ends = (0, 3, 6, 13, 17)


class ShuffleNetV2(Net, shufflenetv2.ShuffleNetV2):
    """Features: after the max pool, after stages 2 to 4, then the embedding pooled after conv5."""

    def stages(self, x, preact=False):
        self.refuse_preact(preact)
        x = self.run_block(self.stem, x)
        maps = [x]
        for stage in (self.stage2, self.stage3, self.stage4):
            for unit in stage:
                x = self.run_block(unit, x)
            maps.append(x)
        return maps, self.run_block(self.conv5, x)

    def stem(self, x):
        return self.maxpool(self.conv1(x))


imagenet_models = {
    'ResNet18': partial(ResNet, resnet.BasicBlock, [2, 2, 2, 2]),
    'ResNet34': partial(ResNet, resnet.BasicBlock, [3, 4, 6, 3]),
    'ResNet50': partial(ResNet, resnet.Bottleneck, [3, 4, 6, 3]),
    'ResNet18Double': partial(ResNet, resnet.BasicBlock, [2, 2, 2, 2], widen=2),
    'resnet34x4': partial(ResNet, resnet.BasicBlock, [3, 4, 6, 3], widen=4),
    'resnext50_32x4d': partial(ResNet, resnet.Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=4),
    'wrn_50_2': partial(ResNet, resnet.Bottleneck, [3, 4, 6, 3], width_per_group=128),
    'vgg11_imagenet': partial(VGG, 'A'),
    'vgg13_imagenet': partial(VGG, 'B'),
    'MobileNetV2_Imagenet': MobileNetV2,
    'ShuffleV2_Imagenet': partial(ShuffleNetV2, [4, 8, 4], [24, 116, 232, 464, 1024]),
    'shufflenet_v2_x0_5': partial(ShuffleNetV2, [4, 8, 4], [24, 48, 96, 192, 1024]),
    'shufflenet_v2_x2_0': partial(ShuffleNetV2, [4, 8, 4], [24, 244, 488, 976, 2048]),
}
