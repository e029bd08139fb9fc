"""Reads an untrusted checkpoint file: only tensors and plain values; nothing in the file is executed."""
import io
import os
import pickle
import pickletools
import warnings
import zipfile
from collections import OrderedDict
from types import SimpleNamespace

import torch

from .errors import UserError

MAX_VALUES = 2 * 10**6     # in a checkpoint, without the tensors' elements; shared values count each time
MAX_LEVELS = 50            # of containers within each other
LEGACY_PICKLES = 5          # in a file of the format before torch 1.6
# Modules and functions that no checkpoint needs. Nothing is ever called; a file that would call them is refused.
SYSTEM = ('os', 'posix', 'nt', 'sys', 'subprocess', 'builtins.eval', 'builtins.exec', 'builtins.__import__')


class _Refused(Exception):
    """A fault that this module finds in a file, in words for the user."""


def read_untrusted(file, source: str) -> tuple[object, list[str]]:
    """Read an open checkpoint file. Returns (its value, the names of its foreign objects).

    Foreign objects are neither tensors nor plain values; in the value an _Inert replaces each.

    Raises UserError for a file that holds only foreign objects, would call the system, is no checkpoint, would fill the
    memory, or would never end.
    """
    objects = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            value = _unpickle(_checked_copy(file), objects)
        has_tensors = _check_values(value)
    except Exception as error:      # anything that a damaged or hostile file makes the unpickler raise
        if objects and 'magic number' in str(error):        # a bare pickle, not of torch.save
            raise _holds_objects(source, objects[0]) from error
        detail = f' ({error})' if isinstance(error, _Refused) else ''
        raise UserError(f'{source}: not a PyTorch checkpoint, or cut short or damaged{detail}; fetch or train it again'
                        ) from error
    system = [name for name in objects if name.partition('.')[0] in SYSTEM or name in SYSTEM]
    if system or (objects and not has_tensors):
        raise _holds_objects(source, [*system, *objects][0])
    return value, objects


def _holds_objects(source, name):
    return UserError(f'{source}: refused, it holds code or objects beside tensors ({name}); save the '
                     f"weights alone: torch.save(net.state_dict(), 'NAME.pth')")


class _Inert:
    """Replaces an object that is neither a tensor nor a plain value: accepts the unpickler's calls and does nothing."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def _ignore(self, *_, **__):
        pass

    __call__ = __setstate__ = __setitem__ = append = extend = add = _ignore


def _unpickle(file, objects):
    """The value that torch reads, with an _Inert for each object, whose name is added to `objects`."""
    try:
        return torch.load(file, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        file.seek(0)

    class Unpickler(pickle.Unpickler):
        """Builds only dictionaries, sets and tensors, whatever a file names."""

        def find_class(self, module, name):
            full = f'{"builtins" if module == "__builtin__" else module}.{name}'       # protocol 2 has the old name
            if full in PLAIN:
                return PLAIN[full]
            # Bound methods: a pickle cannot set attributes of them, as it can of functions.
            if full in ('torch._utils._rebuild_tensor', 'torch._utils._rebuild_tensor_v2'):
                return self._tensor
            if full == 'torch._utils._rebuild_parameter':
                return self._parameter
            if full not in objects:
                objects.append(full)
            return type(full, (_Inert,), {})

        def _tensor(self, storage, offset, size, stride, *_):
            return torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))

        def _parameter(self, data, *_):
            return data

    # With weights_only=False torch uses this unpickler, which is stricter than its own.
    reader = SimpleNamespace(__name__='data', Unpickler=Unpickler,
                             load=lambda file, **options: Unpickler(file, **options).load())
    return torch.load(file, map_location='cpu', weights_only=False, pickle_module=reader)


PLAIN = {'collections.OrderedDict': OrderedDict, 'builtins.set': set}


def _checked_copy(file):
    """The content of the file in memory, for torch to read; of a zip archive only the records checked here."""
    is_zip = file.read(4) == b'PK\3\4'       # torch decides by the same bytes
    file.seek(0)
    if not is_zip:
        copy = io.BytesIO(file.read())
        for _ in range(LEGACY_PICKLES):
            if copy.tell() < copy.getbuffer().nbytes:       # a bare pickle is one, whose objects the unpickler names
                _check_pickle(copy)
        copy.seek(0)
        return copy
    with zipfile.ZipFile(file) as archive:      # which two readers could read differently
        records = archive.infolist()
        names = [record.filename.lower() for record in records]     # torch ignores the case
        if any(name.endswith('constants.pkl') for name in names):
            raise _Refused('a TorchScript program; save the state_dict of its net')
        # torch stores its records as they are: compressed or overlapping, a small file could fill the memory.
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise _Refused('compressed records')
        if sum(record.file_size for record in records) > os.fstat(file.fileno()).st_size:
            raise _Refused('overlapping records')
        if len({*names}) < len(names):
            raise _Refused('two records of one name')
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, 'w') as checked:
            for record, name in zip(records, names, strict=True):
                content = archive.read(record)      # raises for a wrong checksum
                if name.endswith('/data.pkl'):
                    _check_pickle(io.BytesIO(content))
                checked.writestr(record.filename, content)
    copy.seek(0)
    return copy


def _check_pickle(file):
    """Refuse a pickle of tuples within tuples that, as a key, would take for ever to hash. Executes nothing of it."""
    # stack: of the unpickler, for each value (how many values it holds, counted as often as they are reached, levels)
    stack, marks, memo, reached = [], [], {}, 0
    for opcode, argument, _ in pickletools.genops(file):
        count = len(opcode.stack_before)
        if pickletools.markobject in opcode.stack_before:
            count = len(stack) - marks.pop() + opcode.stack_before.index(pickletools.markobject)
        if opcode.name == 'MARK':
            marks.append(len(stack))
        elif 'PUT' in opcode.name or opcode.name == 'MEMOIZE':
            index = len(memo) if argument is None else argument
            if index > MAX_VALUES:     # an unpickler in C allocates memory for all smaller numbers
                raise _Refused('a memo index that is too large')
            memo[index] = stack[-1]
        elif 'GET' in opcode.name:
            stack.append(memo[argument])
        else:
            values = stack[len(stack) - count:]
            del stack[len(stack) - count:]
            held, levels = sum(n for n, _ in values), max((level for _, level in values), default=0)
            stack += [(1 + held, 1 + levels if values else 0)] * len(opcode.stack_after)
            reached += held
            if reached > 5 * MAX_VALUES or levels > MAX_LEVELS:      # a container counts the values of those in it
                raise _Refused('values within values without end')


def _check_values(state) -> bool:
    """Whether there is a tensor. Raises for tensors that are not plain or exceed their storage, and endless nesting."""
    waiting, reached, has_tensors = [(state, '', 0)], 0, False
    while waiting:
        value, name, level = waiting.pop()
        reached += 1
        if level > MAX_LEVELS or reached > MAX_VALUES:
            raise _Refused('values within values without end')
        if isinstance(value, dict):
            waiting += [(v, key, level + 1) for key, v in value.items()]
        elif isinstance(value, (list, tuple, set)):
            waiting += [(v, name, level + 1) for v in value]
        elif isinstance(value, torch.Tensor):
            has_tensors = True
            kind = 'nested' if value.is_nested else 'quantised' if value.is_quantized else value.layout
            if kind != torch.strided or value.device.type != 'cpu':
                raise _Refused(f'{name} is a {kind} tensor on {value.device}')
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise _Refused(f'{name} claims a shape of {tuple(value.shape)}, which is more than the file holds')
    return has_tensors
