"""A network from a checkpoint: which one it is, and with its weights."""
import re
from pathlib import Path

from torch import nn

from helper.checkpoint import load_weights, weights_of
from helper.errors import UserError

from . import model_dict, model_names, resolve


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


def new_net(path: str, checkpoint: dict, name: str, data, flag: str = '--path-t') -> nn.Module:
    """The net `name` for data.num_classes classes, with new weights. Raises UserError if the checkpoint has others."""
    classes = checkpoint.get('num_classes')
    if isinstance(classes, int) and classes != data.num_classes:
        raise UserError(f'{flag} {path}: a net of {classes} classes, but the data has {data.num_classes}; '
                        f'train one on this data with train_teacher.py')
    return model_dict[resolve(name, data.image_size, f'{flag} {path}:')](num_classes=data.num_classes)


def load_net(path: str, checkpoint: dict, name: str, data, flag: str = '--path-t') -> nn.Module:
    """The net `name` for data.num_classes classes, filled from the checkpoint. Raises UserError if it does not fit."""
    if 'inference_net' in checkpoint:
        raise UserError(f'{flag} {path}: holds the network that --distill {checkpoint["inference_net"]} deploys, not a '
                        f'plain {name}; give the checkpoint of a plain network')
    net = new_net(path, checkpoint, name, data, flag)
    load_weights(net, weights_of(checkpoint),
                 f'{flag} {path}: not the weights of {name} with {data.num_classes} classes')
    return net
