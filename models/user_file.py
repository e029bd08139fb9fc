"""A network from a user's file, FILE.py:FUNCTION. The file is imported as a module and can import those beside it."""
import ast
import contextlib
import importlib.util
import sys
import zlib
from pathlib import Path

import torch
from torch import nn

from helper.errors import UserError, reason

from .base import Net

ROOT = Path(__file__).resolve().parents[1]              # of this project's modules
_imported: dict[str, tuple[bytes, object]] = {}         # file -> (its source, the module)


def build(name: str, num_classes: int, image_size: int, flag: str, trains: bool, appends_classifier: bool = False
          ) -> Net:
    """The net that FUNCTION of FILE.py returns, traced unless it is a Net. Raises UserError that begins with `flag`.

    appends_classifier: see models.find.build.
    """
    path, _, function = name.rpartition(':')
    label = f'{flag} {name}'
    before = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        with _import_file(Path(path)) as module:
            net = getattr(module, function)(num_classes=num_classes)
    except (Exception, SystemExit) as error:      # anything can go wrong in a user's file
        fault = f'calls sys.exit({error.code!r})' if isinstance(error, SystemExit) else \
            f'fails with {type(error).__name__} ({reason(error)})'
        raise UserError(f'{label}: {function}(num_classes={num_classes}) {fault}; --debug shows where') from error
    finally:
        is_changed = (torch.is_grad_enabled(), torch.get_default_dtype()) != before
        torch.set_grad_enabled(before[0])
        torch.set_default_dtype(before[1])
    if is_changed:
        raise UserError(f'{label}: switches gradients, or the default dtype, for the whole program; leave that out, or '
                        f'put it into a with block')
    if not isinstance(net, nn.Module):
        raise UserError(f'{label}: returns a {type(net).__name__}; let it return a torch.nn.Module')
    if fault := _find_fault([*net.parameters()], trains):
        raise UserError(f'{label}: {fault}')
    if not isinstance(net, Net):
        from .traced import Traced  # imports torchvision, which takes seconds
        net = Traced(name, net, num_classes, image_size, flag, image_size, trains, appends_classifier)
    net.code_checksum = _code_checksum(Path(path))
    return net


def _find_fault(parameters, trains):
    """Why a net with these parameters cannot be used, or None."""
    if not parameters:
        return 'has no parameters, so there is nothing to train'
    if dtypes := {str(p.dtype).removeprefix('torch.') for p in parameters} - {'float32'}:
        return f'its weights are {", ".join(sorted(dtypes))}; let them be float32'
    if trains and not any(p.requires_grad for p in parameters):
        return 'all of its parameters are frozen (requires_grad=False); let those that are to learn require gradients'
    return None


@contextlib.contextmanager
def _import_file(file):
    """Yield a user's file as a module in sys.modules. Its folder is first in sys.path within the context and last after
    it, so that no module in it hides one of this project or of a library."""
    file = file.resolve()
    folder, source, name = str(file.parent), file.read_bytes(), file.stem
    _forget_modules_beside_other_files(file.parent)
    if _is_taken(name, file):
        name = f'{name}_{zlib.crc32(folder.encode()):08x}'
    sys.path.insert(0, folder)
    try:
        known, module = _imported.get(str(file), (None, None))
        if known != source or sys.modules.get(name) is not module:
            spec = importlib.util.spec_from_file_location(name, file)
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
            _imported[str(file)] = source, module
        yield module
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _is_taken(name, file):
    """Whether a module that is not `file` has this name."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:      # of a module without a spec
        return True
    return spec is not None and spec.origin != str(file)


def _forget_modules_beside_other_files(folder):
    """Remove modules from sys.modules that are beside other users' files and have namesakes in `folder`."""
    other_folders = {Path(file).parent for file in _imported} - {folder}
    namesakes = {path.name.removesuffix('.py') for path in folder.iterdir() if path.suffix == '.py' or path.is_dir()}
    for name, module in [*sys.modules.items()]:
        file, top = getattr(module, '__file__', None), name.partition('.')[0]
        if not file or top not in namesakes:
            continue
        file = Path(file)
        is_ours = file.is_relative_to(ROOT) and file.parent != ROOT
        if not is_ours and any(file == other / f'{top}.py' or file.is_relative_to(other / top)
                               for other in other_folders):
            del sys.modules[name]


def _code_checksum(file):
    """A checksum of the code, without comments, of a user's file and of the modules beside it that it imports."""
    folder, files, crc = file.resolve().parent, [file.resolve()], 0
    for file in files:      # the list grows meanwhile
        tree = ast.parse(file.read_bytes())
        crc = zlib.crc32(ast.dump(tree).encode(), crc)
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            package = getattr(node, 'module', None)
            for alias in node.names:
                name = '.'.join(filter(None, (package, alias.name)))
                paths = [folder / f'{module.replace(".", "/")}{end}' for module in filter(None, (package, name))
                         for end in ('.py', '/__init__.py')]
                files += [path for path in paths if path not in files and path.is_file()]
    return crc
