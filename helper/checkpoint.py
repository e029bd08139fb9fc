"""Checkpoints: saved, loaded as untrusted data, and their weights filled into a net."""
import os
import zlib
from pathlib import Path

import torch
from torch import nn

from .errors import UserError, listed
from .files import open_regular, write_atomically
from .unpickle import read_untrusted

FORMAT_VERSION = 1      # of the checkpoints that save_checkpoint writes
BEFORE_VERSIONS = {'model', 'arch', 'num_classes', 'best_acc'}      # keys of our checkpoints without a version
TRANSFORMED = {'model', 'arch', 'num_classes'}      # the same, of scripts/model_transform.py


def save_checkpoint(path: Path, state: dict, keep: str | None = None) -> None:
    """Write `state` and the version of the format to `path`, atomically. keep: the new name of an older file."""
    state = {**state, 'format_version': FORMAT_VERSION}
    write_atomically(path, lambda file: torch.save(state, file), keep)


def is_ours(state: dict) -> bool:
    """Whether this project wrote a checkpoint. Only then 'arch' and 'inputs' describe its net: others write 'arch' too,
    with other meanings."""
    return isinstance(state.get('model'), dict) and (
        type(state.get('format_version')) is int or state.keys() >= BEFORE_VERSIONS or state.keys() == TRANSFORMED)


def load_checkpoint(path: str, flag: str) -> dict:
    """The dictionary in the untrusted file at `path`, on the CPU. `flag` is named in the errors.

    Only tensors and plain values are read. Other objects beside the weights, as argparse.Namespace, are left out, and a
    line names them. Raises UserError for anything else; see unpickle.read_untrusted.
    """
    what = f'{flag} {path}'
    if os.path.isdir(path):
        files = sorted((p.name for p in Path(path).glob('*.pth') if p.name != 'previous.pth'),
                       key=lambda name: (name == 'last.pth', name))
        raise UserError(f'{what}: is a folder; give the checkpoint file'
                        + (f' in it, one of {", ".join(files)}' if files else ', NAME.pth'))
    if not os.path.exists(path):
        raise UserError(f'{what}: no such file; give a checkpoint, NAME.pth')
    with open_regular(path, what) as file:
        state, objects = read_untrusted(file, what)
    if not isinstance(state, dict):
        raise UserError(f'{what}: holds a {type(state).__name__}; a checkpoint is a dictionary with "model" in it')
    if objects:
        names = [*dict.fromkeys('NumPy values' if name.startswith('numpy') else name for name in objects
                                if not name.startswith('_codecs'))]         # of NumPy's values
        print(f'{what}: objects beside the weights are left out: {listed(names, most=4)}')
    return state


def load_weights(net: nn.Module, weights: dict, what: str) -> None:
    """Fill `net`, or change nothing and raise UserError that names the first key that does not fit and its shapes."""
    if not any(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f'{what}: holds no weights; a checkpoint keeps a state_dict under "model"')
    own = net.state_dict()
    faults = [fault for key in {**own, **weights} if (fault := _compare_weight(key, own, weights))]
    if faults:
        more = f', and {len(faults) - 1} more' if len(faults) > 1 else ''
        raise UserError(f'{what}: {faults[0]}{more}')
    net.load_state_dict({**own, **weights})


def _compare_weight(key, own, weights):
    """Why the weight `key` does not fit, or None. Checkpoints older than torch 0.4.1 do not count batches."""
    if key not in weights:
        return None if key.endswith('num_batches_tracked') else f'{key} {tuple(own[key].shape)} is missing'
    value = weights[key]
    if key not in own:
        return f'{key} {tuple(getattr(value, "shape", ()))} is not in the model'
    expected = tuple(own[key].shape)
    if not isinstance(value, torch.Tensor):
        return f'{key} is {type(value).__name__}, the model has {expected}'
    if value.shape != own[key].shape:
        return f'{key} is {tuple(value.shape)}, the model has {expected}'
    if value.layout != torch.strided or value.device.type != 'cpu':
        return f'{key} is a {value.layout} tensor on {value.device}, the model has a plain one'
    if value.is_floating_point() != own[key].is_floating_point():
        return f'{key} is {value.dtype}, the model has {own[key].dtype}'
    return None


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
