"""Networks by name: ours, timm:NAME, torchvision:NAME, and a function of a file of one's own, FILE.py:FUNCTION."""
import ast
import importlib.util
import re
from pathlib import Path

from torch import nn

from helper.errors import UserError, reason

from . import model_dict, resolve, timm_net, traced
from .base import Net

LIBRARIES = {'timm': timm_net, 'torchvision': traced}
# Of a library's builder, but not of a net: they would load weights, which --path-t does.
NOT_SETTINGS = ('pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'checkpoint_path', 'cache_dir', 'weights',
                'weights_backbone', 'num_classes', 'features_only')


def is_own(name: str) -> bool:
    """Whether `name` is one of a function in a file, FILE.py:FUNCTION."""
    return re.fullmatch(r'.+\.py:\w+', name) is not None


def library_of(name: str) -> str | None:
    """'timm', 'torchvision', or None where `name` is not of a library."""
    library = name.partition(':')[0]
    return library if ':' in name and library in LIBRARIES else None


def settings(name: str, flag: str) -> tuple[str, dict]:
    """'timm:vit_tiny_patch16_224,depth=6' -> ('vit_tiny_patch16_224', {'depth': 6}). Raises UserError."""
    plain, *words = re.split(r',(?![^()\[\]]*[)\]])', name.partition(':')[2])      # at commas outside brackets
    found = {}
    for word in words:
        key, equals, value = word.partition('=')
        if not equals or not key.isidentifier() or key in NOT_SETTINGS or key in found:
            raise UserError(f'{flag} {name}: {word}: give settings of the net as KEY=VALUE, each once, as in '
                            f'timm:vit_tiny_patch16_224,depth=6,patch_size=4')
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return plain, found


def check_name(name: str, image_size: int, flag: str) -> str:
    """The name under which `build` finds this net for images of image_size pixels. Builds nothing.

    Raises UserError that begins with `flag` where there is none.
    """
    if library := library_of(name):
        LIBRARIES[library].check(settings(name, flag)[0], flag)
        return name
    if is_own(name):
        if not Path(name.rpartition(':')[0]).is_file():
            raise UserError(f'{flag} {name}: no such file; give FILE.py:FUNCTION, a function of num_classes that '
                            f'returns a network')
        return name
    return resolve(name, image_size, flag)


def check_without_weights(name: str, flag: str) -> None:
    """Raises UserError where the name of a net that is built, and gets new weights, names published weights."""
    weights = settings(name, flag)[0].partition('.')[2] if library_of(name) else ''
    if weights:
        raise UserError(f'{flag} {name}: {weights} names published weights, which a net by its name does not get; '
                        f'leave it out, or give {name} as --path-t')


DROP_PATH = {'timm': 'drop_path_rate', 'torchvision': 'stochastic_depth_prob'}


def build(name: str, num_classes: int, image_size: int, flag: str = 'model', drop_path: float = 0.0) -> Net:
    """The net `name` with new weights, for num_classes classes and images of image_size pixels.

    drop_path: how often a block of a library's net is left out in training, of the last one; less of those before it.
    Raises UserError that begins with `flag` where it cannot be had.
    """
    name = check_name(name, image_size, flag)
    if library := library_of(name):
        plain, given = settings(name, flag)
        if drop_path:
            given.setdefault(DROP_PATH[library], drop_path)
        return LIBRARIES[library].build(name, plain, given, num_classes, image_size, flag)
    if drop_path:
        raise UserError(f'--drop_path {drop_path:g}: {name} has no paths to drop; it goes with nets of timm and '
                        f'torchvision')
    return _own(name, num_classes, image_size, flag) if is_own(name) else model_dict[name](num_classes=num_classes)


def _own(name, num_classes, image_size, flag):
    path, _, function = name.rpartition(':')
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        net = getattr(module, function)(num_classes=num_classes)
    except Exception as error:      # anything can go wrong in a user's file
        raise UserError(f'{flag} {name}: {function}(num_classes={num_classes}) fails with {type(error).__name__} '
                        f'({reason(error)}); --debug shows where') from error
    if not isinstance(net, nn.Module):
        raise UserError(f'{flag} {name}: returns a {type(net).__name__}; let it return a torch.nn.Module')
    return net if isinstance(net, Net) else traced.Traced(name, net, num_classes, image_size, flag, image_size)
