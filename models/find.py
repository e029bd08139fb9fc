"""Networks by name: ours, timm:NAME, torchvision:NAME, and a function of a file of one's own, FILE.py:FUNCTION."""
import ast
import contextlib
import importlib.util
import re
import sys
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn

from helper.errors import UserError, reason

from . import model_dict, resolve, timm_net, traced
from .adapter import Adapter
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
    """Raises UserError if the name of a net that gets new weights includes published weights, timm:NAME.TAG."""
    weights = settings(name, flag)[0].partition('.')[2] if library_of(name) else ''
    if weights:
        raise UserError(f'{flag} {name}: {weights} names published weights, but this net gets new ones; '
                        f'leave it out, or give {name} as --path-t')


DROP_PATH = {'timm': 'drop_path_rate', 'torchvision': 'stochastic_depth_prob'}


def build(name: str, num_classes: int, image_size: int, flag: str = 'model', drop_path: float = 0.0,
          trains: bool = True) -> Net:
    """The net `name` with new weights, for num_classes classes and images of image_size pixels.

    drop_path: how often a block of a library's net is left out in training, of the last one; less of those before it.
    trains: False for a frozen teacher. Raises UserError that begins with `flag` if the net cannot be built, or if its
    logits for two images are not as required.
    """
    name = check_name(name, image_size, flag)
    library = library_of(name)
    if drop_path and not library:
        raise UserError(f'--drop_path {drop_path:g}: {name} has no paths to drop; it goes with nets of timm and '
                        f'torchvision')
    if not library and not is_own(name):
        return model_dict[name](num_classes=num_classes)        # which the tests hold
    if library:
        plain, given = settings(name, flag)
        if drop_path:
            given.setdefault(DROP_PATH[library], drop_path)
        net = LIBRARIES[library].build(name, plain, given, num_classes, image_size, flag)
    else:
        net = _own(name, num_classes, image_size, flag, trains)
    _check_logits(net, num_classes, image_size, f'{flag} {name}', trains)
    if isinstance(net, Adapter) and net.channels == 1:
        print(f'{flag} {name}: takes one channel, so it gets grey images')
    return net


def _check_weights(net, what, trains):
    """Raises UserError unless all weights are float32, and in a net that trains some require gradients."""
    parameters = [*net.parameters()]
    if not parameters:
        raise UserError(f'{what}: has no parameters, so there is nothing to train')
    if odd := {str(p.dtype).removeprefix('torch.') for p in parameters} - {'float32'}:
        raise UserError(f'{what}: its weights are {", ".join(sorted(odd))}; let them be float32')
    if trains and not any(p.requires_grad for p in parameters):
        raise UserError(f'{what}: all of its parameters are frozen (requires_grad=False); let those that are to learn '
                        f'require gradients')


def _check_logits(net, num_classes, image_size, what, trains):
    """Raises UserError unless a new net's logits have the right shape and dtype; if it trains, also a gradient."""
    def refuse(fault):
        raise UserError(f'{what}: {fault}')

    logits = _first_logits(net, image_size, what)
    if not isinstance(logits, Tensor):
        refuse(f'gives a {type(logits).__name__} instead of logits (N, {num_classes})')
    if logits.dim() != 2:
        refuse(f'gives logits {("N", *logits.shape[1:])}, not one row for each image; let it pool them to '
               f'(N, {num_classes})')
    if logits.shape != (2, num_classes):
        refuse(f'gives {logits.shape[1]} logits for {num_classes} classes; let its last layer have num_classes outputs')
    if logits.dtype != torch.float32:
        refuse(f'gives logits of {str(logits.dtype).removeprefix("torch.")}; let them be float32')
    if trains and not logits.requires_grad:
        refuse('its logits have no gradient, so nothing would learn; is there a torch.no_grad or a detach in it?')
    if trains and not logits.isfinite().all():
        refuse('its logits are not finite with new weights; how are they initialised?')


def _first_logits(net, image_size, what):
    if isinstance(net, Adapter):
        return net.measure(what)
    was_training = net.training
    try:
        with torch.enable_grad():
            out = net.eval().outputs(torch.randn(2, 3, image_size, image_size))
    except Exception as error:      # of a user's code
        raise UserError(f'{what}: fails for images of {image_size} pixels with {type(error).__name__} '
                        f'({reason(error)}); --debug shows where') from error
    net.train(was_training)
    return out.logits


def _own(name, num_classes, image_size, flag, trains):
    path, _, function = name.rpartition(':')
    before = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        with _importing(Path(path)) as module:
            net = getattr(module, function)(num_classes=num_classes)
    except (Exception, SystemExit) as error:      # anything can go wrong in a user's file
        what = f'calls sys.exit({error.code!r})' if isinstance(error, SystemExit) else \
            f'fails with {type(error).__name__} ({reason(error)})'
        raise UserError(f'{flag} {name}: {function}(num_classes={num_classes}) {what}; --debug shows where') from error
    finally:
        changed = (torch.is_grad_enabled(), torch.get_default_dtype()) != before
        torch.set_grad_enabled(before[0])
        torch.set_default_dtype(before[1])
    if changed:
        raise UserError(f'{flag} {name}: switches gradients, or the default dtype, for the whole program; leave that '
                        f'out, or put it into a with block')
    if not isinstance(net, nn.Module):
        raise UserError(f'{flag} {name}: returns a {type(net).__name__}; let it return a torch.nn.Module')
    _check_weights(net, f'{flag} {name}', trains)
    if not isinstance(net, Net):
        net = traced.Traced(name, net, num_classes, image_size, flag, image_size, trains)
    net.code_checksum = _code_checksum(Path(path))
    return net


ROOT = Path(__file__).resolve().parents[1]       # of our own modules
_own_files: dict[str, tuple[bytes, object]] = {}        # file -> its source, and the module that was made of it


@contextlib.contextmanager
def _importing(file):
    """Import a user's file as a module in sys.modules; it can import the modules beside it.

    Its folder is first in sys.path within the context and last after it, so that no module there hides one of ours or
    of a library.
    """
    file = file.resolve()
    folder, source, name = str(file.parent), file.read_bytes(), file.stem
    _forget_others(file.parent)
    if _is_taken(name, file):
        name = f'{name}_{zlib.crc32(folder.encode()):08x}'
    sys.path.insert(0, folder)
    try:
        known, module = _own_files.get(str(file), (None, None))
        if known != source or sys.modules.get(name) is not module:
            spec = importlib.util.spec_from_file_location(name, file)
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
            _own_files[str(file)] = source, module
        yield module
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _is_taken(name, file):
    """Whether another module than that of `file` has this name."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:      # of a module without a spec
        return True
    return spec is not None and spec.origin != str(file)


def _forget_others(folder):
    """Remove modules from sys.modules that were beside other files, if `folder` has modules of the same names."""
    others = {Path(file).parent for file in _own_files} - {folder}
    for name, module in [*sys.modules.items()]:
        found, top = getattr(module, '__file__', None), name.partition('.')[0]
        ours = found and Path(found).is_relative_to(ROOT) and Path(found).parent != ROOT
        beside = found and any(Path(found) == other / f'{top}.py' or Path(found).is_relative_to(other / top)
                               for other in others)
        if beside and not ours and ((folder / f'{top}.py').is_file() or (folder / top).is_dir()):
            del sys.modules[name]


def _code_checksum(file):
    """A checksum of the code, without comments, of a user's file and of the modules beside it that it imports."""
    folder, waiting, crc = file.resolve().parent, [file.resolve()], 0
    for file in waiting:        # the list grows meanwhile
        tree = ast.parse(file.read_bytes())
        crc = zlib.crc32(ast.dump(tree).encode(), crc)
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            base = getattr(node, 'module', None)
            for alias in node.names:
                name = '.'.join(filter(None, (base, alias.name)))
                found = [folder / f'{part.replace(".", "/")}{end}' for part in filter(None, (base, name))
                         for end in ('.py', '/__init__.py')]
                waiting += [path for path in found if path not in waiting and path.is_file()]
    return crc
