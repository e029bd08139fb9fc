"""Checkpoints: saved, loaded as untrusted data, and their weights filled into a net."""
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from .errors import UserError, listed
from .files import open_regular, write_atomically
from .unpickle import read_untrusted

FORMAT_VERSION = 1      # of the checkpoints that save_checkpoint writes
BEFORE_VERSIONS = {'model', 'arch', 'num_classes', 'best_acc'}      # keys of our checkpoints without a version
TRANSFORMED = {'model', 'arch', 'num_classes'}      # the same, of scripts/model_transform.py


def save_checkpoint(path: Path, state: dict, backup: str | None = None) -> None:
    """Write `state` and the version of the format to `path`, atomically. backup: the new name of an older file."""
    state = {**state, 'format_version': FORMAT_VERSION}
    write_atomically(path, lambda file: torch.save(state, file), backup)


def is_project_checkpoint(state: dict) -> bool:
    """Whether this project wrote a checkpoint. Only then 'arch' and 'inputs' describe its net: others write 'arch' too,
    with other meanings."""
    return isinstance(state.get('model'), dict) and (
        type(state.get('format_version')) is int or state.keys() >= BEFORE_VERSIONS or state.keys() == TRANSFORMED)


def load_checkpoint(path: str, flag: str) -> dict:
    """The dictionary in the untrusted file at `path`, on the CPU; see unpickle.read_untrusted. flag: for the errors.

    Prints a line that names the objects left out beside the weights, as argparse.Namespace. Raises UserError.
    """
    source = f'{flag} {path}'
    if os.path.isdir(path):
        files = sorted((p.name for p in Path(path).glob('*.pth') if p.name != 'previous.pth'),
                       key=lambda name: (name == 'last.pth', name))
        raise UserError(f'{source}: is a folder; give the checkpoint file'
                        + (f' in it, one of {", ".join(files)}' if files else ', NAME.pth'))
    if not os.path.exists(path):
        raise UserError(f'{source}: no such file; give a checkpoint, NAME.pth')
    with open_regular(path, source) as file:
        state, objects = read_untrusted(file, source)
    if not isinstance(state, dict):
        raise UserError(f'{source}: holds a {type(state).__name__}; a checkpoint is a dictionary with "model" in it')
    if objects:
        names = [*dict.fromkeys('NumPy values' if name.startswith('numpy') else name for name in objects
                                if not name.startswith('_codecs'))]         # of NumPy's values
        print(f'{source}: objects beside the weights are left out: {listed(names, most=4)}')
    return state


def load_weights(net: nn.Module, weights: dict, source: str) -> None:
    """Fill `net`, or change nothing and raise UserError that names the first key that does not fit and its shapes."""
    if not any(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f'{source}: holds no weights; a checkpoint keeps a state_dict under "model"')
    expected = net.state_dict()
    faults = [fault for key in {**expected, **weights} if (fault := _compare_weight(key, expected.get(key), weights))]
    if faults:
        rest = f', and {len(faults) - 1} more' if len(faults) > 1 else ''
        raise UserError(f'{source}: {faults[0]}{rest}')
    net.load_state_dict({**expected, **weights})


def _compare_weight(key, expected, weights):
    """Why the weight `key` does not fit the tensor `expected` (None: the net has no such key), or None."""
    value = weights.get(key)
    if expected is None:
        return f'{key} {tuple(getattr(value, "shape", ()))} is not in the model'
    shape = tuple(expected.shape)
    if key not in weights:      # checkpoints older than torch 0.4.1 do not count batches
        return None if key.endswith('num_batches_tracked') else f'{key} {shape} is missing'
    if not isinstance(value, torch.Tensor) or value.shape != expected.shape:
        actual = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        return f'{key} is {actual}, the model has {shape}'
    if value.layout != torch.strided or value.device.type != 'cpu':
        return f'{key} is a {value.layout} tensor on {value.device}, the model has a plain one'
    if value.is_floating_point() != expected.is_floating_point():
        return f'{key} is {value.dtype}, the model has {expected.dtype}'
    return None


def weights_checksum(net: nn.Module, left_out: Iterable[str] = ()) -> int:
    """A checksum of all parameters and buffers but the names `left_out`."""
    crc = 0
    for value in (value for name, value in net.state_dict().items() if name not in left_out):
        crc = zlib.crc32(value.detach().cpu().contiguous().numpy().tobytes(), crc)
    return crc


def describe_net(arch: str, data, opt) -> dict:
    """Return the entries of a checkpoint that describe its net and the data (dataset.Data) it was trained on."""
    return {'arch': arch, 'num_classes': data.num_classes, 'inputs': data.inputs,
            'normalisation': data.normalisation, 'classes': [*data.classes], 'split': opt.split,
            'val_fraction': opt.val_fraction}
