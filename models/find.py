"""Networks by name: this project's, timm:NAME, torchvision:NAME, and a function of a user's file, FILE.py:FUNCTION."""
import ast
import re
from pathlib import Path

import torch
from torch import Tensor

from helper.errors import UserError, reason

from . import IMAGENET, model_dict, resolve, timm_net, torchvision_net, user_file
from .adapter import Adapter
from .base import Net, probe

LIBRARIES = {'timm': timm_net, 'torchvision': torchvision_net}
DROP_PATH = {'timm': 'drop_path_rate', 'torchvision': 'stochastic_depth_prob'}      # arguments of their builders
# Arguments of a library's builder that a name cannot set: classes come from the data, weights from --path-t.
NOT_SETTINGS = ('pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'checkpoint_path', 'cache_dir', 'weights',
                'weights_backbone', 'num_classes', 'features_only')
CIFAR_SIZE, IMAGENET_SIZE = 32, 224     # pixels for which the nets of model_dict were made


def is_user_file(name: str) -> bool:
    """Whether `name` names a function in a file, FILE.py:FUNCTION."""
    return re.fullmatch(r'.+\.py:\w+', name) is not None


def get_library(name: str) -> str | None:
    """'timm' or 'torchvision'; None if `name` is not a library's net."""
    library = name.partition(':')[0]
    return library if ':' in name and library in LIBRARIES else None


def parse_name(name: str, flag: str) -> tuple[str, dict]:
    """'timm:vit_tiny_patch16_224,depth=6' -> ('vit_tiny_patch16_224', {'depth': 6}). Raises UserError."""
    plain, *arguments = re.split(r',(?![^()\[\]]*[)\]])', name.partition(':')[2])      # at commas outside brackets
    settings = {}
    for argument in arguments:
        key, equals, value = argument.partition('=')
        if not equals or not key.isidentifier() or key in NOT_SETTINGS or key in settings:
            raise UserError(f'{flag} {name}: {argument}: give settings of the net as KEY=VALUE, each once, as in '
                            f'timm:vit_tiny_patch16_224,depth=6,patch_size=4')
        try:
            settings[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[key] = value
    return plain, settings


def check_name(name: str, image_size: int, flag: str) -> str:
    """The name under which `build` finds this net. Raises UserError if there is no such net."""
    if library := get_library(name):
        LIBRARIES[library].check(parse_name(name, flag)[0], flag)
        return name
    if is_user_file(name):
        if not Path(name.rpartition(':')[0]).is_file():
            raise UserError(f'{flag} {name}: no such file; give FILE.py:FUNCTION, a function of num_classes that '
                            f'returns a network')
        return name
    return resolve(name, image_size, flag)


def check_without_weights(name: str, flag: str) -> None:
    """Raise UserError if the name of a net that gets new weights includes published weights, timm:NAME.TAG."""
    weights = parse_name(name, flag)[0].partition('.')[2] if get_library(name) else ''
    if weights:
        load_it = '' if flag == '--model_t' else ' add --pretrained,'
        raise UserError(f'{flag} {name}: {weights} names published weights, but this net gets new ones; '
                        f'leave it out,{load_it} or give {name} as --path-t')


def check_published(name: str, flag: str) -> None:
    """Raise UserError unless a library publishes weights of the net `name`, for --pretrained."""
    library, twin = get_library(name), IMAGENET.get(name)
    if library and LIBRARIES[library].has_published(parse_name(name, flag)[0], flag):
        return
    advice = f'give {flag} torchvision:{twin}, the same net with published weights' if twin else \
        'give the weights of a file, --initial_checkpoint PATH, or a net of timm or torchvision that has some'
    raise UserError(f'--pretrained: {flag} {name} has no published weights; {advice}')


def warn_of_size(name: str, size: int, flag: str) -> None:
    """Print a line if images of this size are less than half or more than twice the size that the net was made for."""
    library = get_library(name)
    plain, settings = parse_name(name, flag) if library else (name, {})
    if is_user_file(name) or {'img_size', 'image_size', 'patch_size'} & settings.keys():     # the user decides the size
        return
    usual = IMAGENET_SIZE if name in IMAGENET else CIFAR_SIZE
    if library:
        try:
            usual = LIBRARIES[library].published_inputs(plain, flag)['size']
        except (UserError, AttributeError, ValueError):       # a net without published weights
            return
    if not usual <= 2 * size <= 4 * usual:
        print(f'{flag} {name}: is made for images of {usual} pixels, these have {size}')


def build(name: str, num_classes: int, image_size: int, flag: str = 'model', drop_path: float = 0.0,
          trains: bool = True, appends_classifier: bool = False) -> Net:
    """The net `name` with new weights. Raises UserError if it cannot be built, or if its logits are not as required.

    drop_path: probability in training of leaving out the last block of a library's net; lower for earlier blocks.
    appends_classifier: a net of a user's file that returns features (N, width) gets a linear classifier.
    """
    name = check_name(name, image_size, flag)
    library = get_library(name)
    if drop_path and not library:
        raise UserError(f'--drop_path {drop_path:g}: {name} has no paths to drop; it goes with nets of timm and '
                        f'torchvision')
    if library:
        plain, settings = parse_name(name, flag)
        if drop_path:
            settings.setdefault(DROP_PATH[library], drop_path)
        net = LIBRARIES[library].build(name, plain, settings, num_classes, image_size, flag)
    elif is_user_file(name):
        net = user_file.build(name, num_classes, image_size, flag, trains, appends_classifier)
    else:
        return model_dict[name](num_classes=num_classes)        # the tests check its logits
    label = f'{flag} {name}'
    if fault := _find_fault(_compute_logits(net, image_size, label), num_classes, trains):
        raise UserError(f'{label}: {fault}')
    if isinstance(net, Adapter) and net.channels == 1:
        print(f'{label}: takes one channel, so it gets grey images')
    return net


def _compute_logits(net, image_size, label):
    """The logits of a new net for two noise images. Raises UserError if it cannot take them."""
    if isinstance(net, Adapter):
        return net.measure(label)
    try:
        return probe(net, torch.randn(2, 3, image_size, image_size), gradient=True).logits
    except Exception as error:      # of a user's code
        raise UserError(f'{label}: fails for images of {image_size} pixels with {type(error).__name__} '
                        f'({reason(error)}); --debug shows where') from error


def _find_fault(logits, num_classes, trains):
    """Why a new net with these logits of two images cannot be used, or None."""
    if not isinstance(logits, Tensor):
        return f'gives a {type(logits).__name__} instead of logits (N, {num_classes})'
    if logits.dim() != 2:
        return f'gives logits {("N", *logits.shape[1:])}, not one row for each image; let it pool them to ' \
               f'(N, {num_classes})'
    if logits.shape != (2, num_classes):
        advice = 'let its last layer have num_classes outputs' + (
            '' if trains else ', or add --teacher_head linear for a teacher that returns features')
        return f'gives {logits.shape[1]} logits for {num_classes} classes; {advice}'
    if logits.dtype != torch.float32:
        return f'gives logits of {str(logits.dtype).removeprefix("torch.")}; let them be float32'
    if trains and not logits.requires_grad:
        return 'its logits have no gradient, so nothing would learn; is there a torch.no_grad or a detach in it?'
    if trains and not logits.isfinite().all():
        return 'its logits are not finite with new weights; how are they initialised?'
    return None
