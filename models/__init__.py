"""Every network by its name: model_dict[name](num_classes=N).

net(x) returns logits (N, num_classes). net(x, is_feat=True) returns (features, logits); features are the stem's output,
one map for each stage, and the pooled embedding (N, C). preact=True returns the stages' maps before their ReLU.
"""
from functools import partial

from helper.errors import UserError, nearest

from .cifar_resnet import cifar_resnet_models
from .mobilenetv2 import mobilenetv2_models
from .shufflenet import shufflenet_models
from .vgg import vgg_models
from .wrn import wrn_models


def _imagenet(name, num_classes: int = 1000):
    """Build a net of imagenet.py. Only then import torchvision, which takes seconds."""
    from .imagenet import imagenet_models
    return imagenet_models[name](num_classes=num_classes)


IMAGENET = {        # name -> the same net in torchvision, if it has one
    'ResNet18': 'resnet18', 'ResNet34': 'resnet34', 'ResNet50': 'resnet50', 'ResNet18Double': None, 'resnet34x4': None,
    'resnext50_32x4d': 'resnext50_32x4d', 'wrn_50_2': 'wide_resnet50_2', 'vgg11_imagenet': 'vgg11_bn',
    'vgg13_imagenet': 'vgg13_bn', 'MobileNetV2_Imagenet': 'mobilenet_v2', 'ShuffleV2_Imagenet': 'shufflenet_v2_x1_0',
    'shufflenet_v2_x0_5': 'shufflenet_v2_x0_5', 'shufflenet_v2_x2_0': 'shufflenet_v2_x2_0'}

model_dict = {**cifar_resnet_models, **wrn_models, **vgg_models, **mobilenetv2_models, **shufflenet_models,
              **{name: partial(_imagenet, name) for name in IMAGENET}}

# Each name has two nets: with a 3x3 stem for small images, with torchvision's 7x7 stem and max pool for large ones.
TWO_STEMS = ('ResNet18', 'ResNet34', 'ResNet50')
SMALL_IMAGE = 64


def model_names() -> list[str]:
    """Names that the scripts accept."""
    return sorted({*model_dict, *TWO_STEMS})


def resolve(name: str, image_size: int, flag: str = 'model') -> str:
    """The key of model_dict that `name` means for images of `image_size` pixels. Raises UserError for other names."""
    if name in TWO_STEMS and image_size <= SMALL_IMAGE:
        return f'{name}_cifar'
    if name not in model_dict:
        raise UserError(f'{flag} {name}: no such model; {nearest(name, model_names())}')
    return name


def default_learning_rate(name: str) -> float:
    """The SemCKD paper's initial learning rate for this model."""
    return 0.01 if name in ('MobileNetV2', 'ShuffleV1', 'ShuffleV2') else 0.05
