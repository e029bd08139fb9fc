"""Checkpoints: saved whole, loaded as untrusted data."""
import io
import os
import pickle
import pickletools
import warnings
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from .errors import UserError, listed
from .files import open_regular, write_atomically

FORMAT_VERSION = 1      # of the checkpoints that save_checkpoint writes
BEFORE_VERSIONS = {'model', 'arch', 'num_classes', 'best_acc'}      # keys of our checkpoints without a version
TRANSFORMED = {'model', 'arch', 'num_classes'}      # the same, of scripts/model_transform.py


def save_checkpoint(path: Path, state: dict, keep: str | None = None) -> None:
    """Write `state` with the format's version to `path`. An older file there stays until the new one is complete, and
    then gets the name `keep`."""
    state = {**state, 'format_version': FORMAT_VERSION}
    write_atomically(path, lambda file: torch.save(state, file), keep)


def is_ours(state: dict) -> bool:
    """Whether this project wrote a checkpoint. Only then 'arch' and 'inputs' are trusted to describe its net: others
    write 'arch' too, with other meanings."""
    return isinstance(state.get('model'), dict) and (
        type(state.get('format_version')) is int or state.keys() >= BEFORE_VERSIONS or state.keys() == TRANSFORMED)


def load_checkpoint(path: str, flag: str) -> dict:
    """The dictionary in the untrusted file at `path`, on the CPU. `flag` is named in the errors.

    Only tensors and plain values are read. Other objects beside the weights, as argparse.Namespace, are not run: an
    _Inert replaces each, and a line names them. Raises UserError for a file that holds only such objects or would call
    the system, for anything that is not a checkpoint, or would fill the memory or never end.
    """
    if os.path.isdir(path):
        inside = sorted((p.name for p in Path(path).glob('*.pth') if p.name != 'previous.pth'),
                        key=lambda name: (name == 'last.pth', name))
        raise UserError(f'{flag} {path}: is a folder; give the checkpoint file'
                        + (f' in it, one of {", ".join(inside)}' if inside else ', NAME.pth'))
    if not os.path.exists(path):
        raise UserError(f'{flag} {path}: no such file; give a checkpoint, NAME.pth')
    with open_regular(path, f'{flag} {path}') as file:
        objects = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                state = _read(_checked(file), objects)
            has_tensors = _check_values(state)
            system = [name for name in objects if name.partition('.')[0] in SYSTEM or name in SYSTEM]
            if system or (objects and not has_tensors):
                raise _OnlyObjects([*system, *objects][0])
        except Exception as error:      # anything that a damaged or hostile file makes the unpickler raise
            called = str(error) if isinstance(error, _OnlyObjects) else _called_by_pickle(file)
            if called:
                raise UserError(f'{flag} {path}: refused, it holds code or objects beside tensors ({called}); '
                                f'give a checkpoint as torch.save writes of a state_dict') from error
            detail = f' ({error})' if isinstance(error, _Refused) else ''
            raise UserError(f'{flag} {path}: not a PyTorch checkpoint, or cut short or damaged{detail}; '
                            f'fetch or train it again') from error
    if not isinstance(state, dict):
        raise UserError(f'{flag} {path}: holds a {type(state).__name__}; '
                        f'a checkpoint is a dictionary with "model" in it')
    if objects:
        names = [*dict.fromkeys('NumPy values' if name.startswith('numpy') else name for name in objects
                                if not name.startswith('_codecs'))]         # of NumPy's values
        print(f'{flag} {path}: objects beside the weights are left out: {listed(names, most=4)}')
    return state


class _Refused(Exception):
    """What this module itself finds wrong in a file, in words for the user."""


class _OnlyObjects(Exception):
    """The file has no tensors, or would call the system. The message is the call."""


# Modules and functions that no checkpoint needs. Nothing is ever called; a file that would call them is refused.
SYSTEM = ('os', 'posix', 'nt', 'sys', 'subprocess', 'builtins.eval', 'builtins.exec', 'builtins.__import__')


class _Inert:
    """Replaces an object that is neither a tensor nor a plain value: accepts the unpickler's calls and does nothing."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def _ignore(self, *_, **__):
        pass

    __call__ = __setstate__ = __setitem__ = append = extend = add = _ignore


def _read(file, objects):
    """The value that torch reads from a file, with an _Inert for each object that is neither tensor nor plain value.

    The names of such objects are added to `objects`.
    """
    try:
        return torch.load(file, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        file.seek(0)

    class Unpickler(pickle.Unpickler):
        """Builds only dictionaries, sets and tensors, whatever a file names."""

        def find_class(self, module, name):
            module = 'builtins' if module == '__builtin__' else module      # as protocol 2 names it
            if plain := {'collections.OrderedDict': OrderedDict, 'builtins.set': set}.get(f'{module}.{name}'):
                return plain
            if module == 'torch._utils' and name in ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter'):
                return getattr(self, name)
            full = f'{module}.{name}'
            if full not in objects:
                objects.append(full)
            return type(full, (_Inert,), {})

        def _rebuild_tensor(self, storage, offset, size, stride, *_):
            return torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))

        _rebuild_tensor_v2 = _rebuild_tensor

        def _rebuild_parameter(self, data, *_):
            return data

    # With weights_only=False torch uses this unpickler, which is stricter than its own.
    reader = SimpleNamespace(__name__='data', Unpickler=Unpickler,
                             load=lambda file, **more: Unpickler(file, **more).load())
    return torch.load(file, map_location='cpu', weights_only=False, pickle_module=reader)


MOST_VALUES = 2 * 10**6     # in a checkpoint, without the tensors' elements; shared values count each time
DEEPEST = 50                # containers within each other
PICKLES = 5                 # of a file in the format before torch 1.6


def _checked(file):
    """What torch may read: the content of the file, in memory. A zip archive is rebuilt from the records checked here.

    An archive can be made so that two readers see different records; and torch does not check the checksums.
    """
    zipped = file.read(4) == b'PK\3\4'       # so torch decides too
    file.seek(0)
    if not zipped:
        copy = io.BytesIO(file.read())
        for _ in range(PICKLES):
            _check_pickle(copy)
        copy.seek(0)
        return copy
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if any(record.filename.lower().endswith('constants.pkl') for record in records):     # by which torch knows it
            raise _Refused('a TorchScript program; save the state_dict of its net')
        # torch stores its records as they are: compressed or overlapping, a small file could fill the memory.
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise _Refused('compressed records')
        if sum(record.file_size for record in records) > os.fstat(file.fileno()).st_size:
            raise _Refused('overlapping records')
        names = {record.filename.lower() for record in records}     # torch ignores the case
        if len(names) < len(records):
            raise _Refused('two records of one name')
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, 'w') as checked:
            for record in records:
                content = archive.read(record)      # raises where the checksum is not that of the content
                if record.filename.lower().endswith('/data.pkl'):
                    _check_pickle(io.BytesIO(content))
                checked.writestr(record.filename, content)
    copy.seek(0)
    return copy


def _check_pickle(file):
    """Refuse a pickle of tuples within tuples that, as a key, would take for ever to hash. Runs nothing of it.

    For each value on the unpickler's stack: how many it holds, counted as often as they are reached, and how deep.
    """
    stack, marks, memo, reached = [], [], {}, 0
    for opcode, argument, _ in pickletools.genops(file):
        takes = len(opcode.stack_before)
        if pickletools.markobject in opcode.stack_before:
            takes = len(stack) - marks.pop() + opcode.stack_before.index(pickletools.markobject)
        if opcode.name == 'MARK':
            marks.append(len(stack))
        elif 'PUT' in opcode.name or opcode.name == 'MEMOIZE':
            place = len(memo) if argument is None else argument
            if place > MOST_VALUES:     # an unpickler in C allocates memory for all smaller numbers
                raise _Refused('a memo index that is too large')
            memo[place] = stack[-1]
        elif 'GET' in opcode.name:
            stack.append(memo[argument])
        else:
            taken = stack[len(stack) - takes:]
            del stack[len(stack) - takes:]
            held, depth = sum(n for n, _ in taken), max((d for _, d in taken), default=0)
            stack += [(1 + held, 1 + depth if taken else 0)] * len(opcode.stack_after)
            reached += held
            if reached > 5 * MOST_VALUES or depth > DEEPEST:       # each container counts what those in it have counted
                raise _Refused('values within values without end')


def _check_values(state):
    """Raise for tensors that are not plain or larger than their storage, and for endless nesting.

    Returns whether there is a tensor.
    """
    waiting, reached, has_tensors = [(state, '', 0)], 0, False
    while waiting:
        value, name, depth = waiting.pop()
        reached += 1
        if depth > DEEPEST or reached > MOST_VALUES:
            raise _Refused('values within values without end')
        if isinstance(value, dict):
            waiting += [(v, key, depth + 1) for key, v in value.items()]
        elif isinstance(value, (list, tuple, set)):
            waiting += [(v, name, depth + 1) for v in value]
        elif isinstance(value, torch.Tensor):
            has_tensors = True
            kind = 'nested' if value.is_nested else 'quantised' if value.is_quantized else value.layout
            if kind != torch.strided or value.device.type != 'cpu':
                raise _Refused(f'{name} is a {kind} tensor on {value.device}')
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise _Refused(f'{name} claims a shape of {tuple(value.shape)}, which is more than the file holds')
    return has_tensors


def _called_by_pickle(file) -> str | None:
    """The first thing that a bare pickle file would import; None when it is no pickle. Nothing of it is run."""
    strings = []
    try:
        file.seek(0)
        for opcode, value, _ in pickletools.genops(file):
            if opcode.name == 'GLOBAL':
                return value.replace(' ', '.')
            if opcode.name == 'STACK_GLOBAL':
                return '.'.join(strings[-2:])
            if isinstance(value, str):
                strings.append(value)
    except Exception:       # not a pickle
        pass
    return None


def load_weights(net: nn.Module, weights: dict, what: str) -> None:
    """Fill `net`, or change nothing and raise UserError that names the first key that does not fit and its shapes."""
    own = net.state_dict()
    if not any(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f'{what}: holds no weights; a checkpoint keeps a state_dict under "model"')
    problems = []
    for key in [*own, *(key for key in weights if key not in own)]:
        value = weights.get(key)
        if key not in weights:
            # Checkpoints older than torch 0.4.1 do not count batches.
            if not key.endswith('num_batches_tracked'):
                problems.append(f'{key} {tuple(own[key].shape)} is missing')
        elif key not in own:
            problems.append(f'{key} {tuple(getattr(value, "shape", ()))} is not in the model')
        elif not isinstance(value, torch.Tensor) or value.shape != own[key].shape:
            found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            problems.append(f'{key} is {found}, the model has {tuple(own[key].shape)}')
        elif value.layout != torch.strided or value.device.type != 'cpu':
            problems.append(f'{key} is a {value.layout} tensor on {value.device}, the model has a plain one')
        elif value.is_floating_point() != own[key].is_floating_point():
            problems.append(f'{key} is {value.dtype}, the model has {own[key].dtype}')
    if problems:
        more = f', and {len(problems) - 1} more' if len(problems) > 1 else ''
        raise UserError(f'{what}: {problems[0]}{more}')
    net.load_state_dict({**own, **weights})


def weights_checksum(net: nn.Module) -> int:
    """A checksum of all parameters and buffers."""
    crc = 0
    for value in net.state_dict().values():
        crc = zlib.crc32(value.detach().cpu().contiguous().numpy().tobytes(), crc)
    return crc


def describe_net(arch: str, data, opt) -> dict:
    """Return the entries of a checkpoint that describe its net and the data (dataset.Data) it was trained on."""
    return {'arch': arch, 'num_classes': data.num_classes, 'inputs': data.inputs, 'classes': [*data.classes],
            'split': opt.split}
