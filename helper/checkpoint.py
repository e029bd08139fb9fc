"""Checkpoints: saved whole, loaded as data that nobody vouches for."""
import os
import pickletools
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from models import model_dict, model_names, resolve

from .errors import UserError
from .files import write_atomically


def save_checkpoint(path: Path, state: dict, keep: str | None = None) -> None:
    """Write `state` to `path`; an older file there stays whole until the new one is, and then gets the name `keep`."""
    write_atomically(path, lambda file: torch.save(state, file), keep)


def load_checkpoint(path: str, flag: str) -> dict:
    """The dictionary in the file at `path`, on the CPU. `flag` is named in the errors.

    Only tensors and plain values are read (weights_only): a pickle that would run code is refused by the name of what
    it would call. Raises UserError.
    """
    if os.path.isdir(path):
        inside = sorted(p.name for p in Path(path).glob('*.pth') if p.name not in ('last.pth', 'previous.pth'))
        raise UserError(f'{flag} {path}: is a folder; give the checkpoint file'
                        + (f' in it, one of {", ".join(inside)}' if inside else ', NAME.pth'))
    if not os.path.exists(path):
        raise UserError(f'{flag} {path}: no such file; give a checkpoint, NAME.pth')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            # torch does not look at the checksums that it writes.
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as file:
                    # torch stores its records as they are: compressed, a small file could fill the memory.
                    if any(record.compress_type != zipfile.ZIP_STORED for record in file.infolist()):
                        raise ValueError('compressed records')
                    damaged = file.testzip()
                if damaged:
                    raise ValueError(f'checksum of {damaged}')
            state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:      # whatever a damaged or hostile file makes the unpickler raise
        named = re.search(r'GLOBAL ([\w.]+)', str(error))
        called = named[1] if named else _called_by_pickle(path)
        if called:
            raise UserError(f'{flag} {path}: refused, it holds code or objects beside tensors ({called}); '
                            f'give a checkpoint as torch.save writes of a state_dict') from error
        raise UserError(f'{flag} {path}: not a PyTorch checkpoint, or cut short or damaged; '
                        f'fetch or train it again') from error
    if not isinstance(state, dict):
        raise UserError(f'{flag} {path}: holds a {type(state).__name__}; '
                        f'a checkpoint is a dictionary with "model" in it')
    return state


def _called_by_pickle(path) -> str | None:
    """The first thing that a bare pickle file would import; None when it is no pickle. Nothing of it is run."""
    strings = []
    try:
        with open(path, 'rb') as file:
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


def weights_of(checkpoint: dict) -> dict:
    """The state_dict in a checkpoint: under 'model' or 'state_dict', or the checkpoint itself; without 'module.'."""
    state = checkpoint.get('model', checkpoint.get('state_dict', checkpoint))
    if not isinstance(state, dict):
        return {}
    return {str(key).removeprefix('module.'): value for key, value in state.items()}


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


def teacher_name(path: str, checkpoint: dict, flag: str = '--path-t') -> str:
    """The architecture of a checkpoint: what it says itself, else what its folder's name says.

    Folders: S:{student}_T:..., {model}_{dataset}_lr_..., or one that begins with a model's name up to '_' or its end.
    """
    if isinstance(checkpoint.get('arch'), str):
        return checkpoint['arch']
    folder = Path(path).resolve().parent.name
    match = re.match(r'S[:~](.+?)_T[:~]', folder) or re.match(r'(.+)_[^_]+_lr_', folder)
    if match and match[1] in model_names():
        return match[1]
    names = [name for name in model_names() if folder == name or folder.startswith(f'{name}_')]
    if not names:
        raise UserError(f'{flag} {path}: the folder {folder} does not say which model this is; '
                        f'let its name begin with one of: {", ".join(model_names())}')
    return max(names, key=len)


def load_net(path: str, checkpoint: dict, name: str, data, flag: str = '--path-t') -> nn.Module:
    """The net `name` for data.num_classes classes, filled from the checkpoint. Raises UserError if it does not fit."""
    classes = checkpoint.get('num_classes')
    if isinstance(classes, int) and classes != data.num_classes:
        raise UserError(f'{flag} {path}: a net of {classes} classes, but the data has {data.num_classes}; '
                        f'train one on this data with train_teacher.py')
    net = model_dict[resolve(name, data.image_size, f'{flag} {path}:')](num_classes=data.num_classes)
    load_weights(net, weights_of(checkpoint),
                 f'{flag} {path}: not the weights of {name} with {data.num_classes} classes')
    return net
