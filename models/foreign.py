"""Checkpoints of other programs: read the file, find the weights in it, remove the prefix of their names."""
import os
import re
from collections import Counter
from pathlib import Path

import torch

from helper.errors import UserError, counted, import_optional, nearest, printable, reason
from helper.files import read_json

from .find import NOT_SETTINGS

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'     # of a folder that timm and the Hugging Face Hub write
# Keys under which training scripts save a state_dict, and an average of the weights beside it.
AVERAGES = ('model_ema', 'state_dict_ema', 'ema', 'ema_state_dict', 'model_ema_state_dict', 'ema_model', 'params_ema')
RAW = ('model', 'state_dict', 'net', 'network', 'model_state_dict', 'model_state', 'weights', 'params', 'student',
       'teacher')
USUAL = ('model', 'state_dict')     # no line tells the user of these
DEEPEST = 3     # nested dictionaries around the weights
WRAPPERS = r'(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)'    # anywhere in a name


def read_folder(folder: Path, flag: str) -> dict:
    """The checkpoint in a folder of timm: weights, architecture, classes, and preprocessing as 'inputs'."""
    config = read_json(folder / CONFIG, f'{flag} {folder / CONFIG}')
    net = config.get('architecture') if isinstance(config, dict) else None
    if not isinstance(net, str):
        raise UserError(f'{flag} {folder / CONFIG}: names no architecture of timm; give the safetensors file, and '
                        f'--model_t for its net')
    arguments = config.get('model_args') if isinstance(config.get('model_args'), dict) else {}
    settings = [f'{key}={value}' for key, value in arguments.items() if key not in NOT_SETTINGS]
    published = config.get('pretrained_cfg') if isinstance(config.get('pretrained_cfg'), dict) else config
    size = published.get('input_size')
    inputs = {key: published.get(key) for key in ('mean', 'std', 'interpolation')}
    if published.get('crop_pct') is not None:
        inputs['crop_pct'] = published['crop_pct']
    inputs['size'] = size[-1] if isinstance(size, list) and size else None
    return {'arch': ','.join([f'timm:{net}', *settings]), 'num_classes': config.get('num_classes'), 'inputs': inputs,
            'classes': published.get('label_names'), 'model': read_safetensors(folder / WEIGHTS, flag)}


def read_safetensors(file: Path, flag: str) -> dict:
    """The state_dict in a file of safetensors. Raises UserError."""
    safetensors = import_optional('safetensors.torch', f'{flag} {file}')
    try:
        return safetensors.load_file(file)
    except FileNotFoundError:
        raise UserError(f'{flag} {file}: no such file; fetch it') from None
    except Exception as error:      # of a damaged file
        raise UserError(f'{flag} {file}: is not a complete safetensors file ({reason(error)}); fetch it '
                        f'again') from error


def find_weights(state: dict, label: str, key: str | None = None) -> tuple[dict, str]:
    """(the state_dict in a checkpoint, a text that says where it was). label: begins the messages.

    key: --checkpoint_key; A/B is B in A. By default an average of the weights, else the weights under a usual key, else
    the checkpoint itself. Raises UserError unless there is exactly one set.
    """
    if key is not None:
        return _weights_at(state, key, label), f"weights under '{printable(key)}'"
    averages, raw = _weights_under(state, AVERAGES), _weights_under(state, RAW)
    candidates = averages or raw
    if not candidates and _has_tensors(state):
        return _without_wrappers(state), ''
    if len(candidates) > 1:
        raise UserError(f'{label}: holds several sets of weights; choose one by {key_flag(label)}, of '
                        f'{", ".join(map(printable, candidates))}')
    if not candidates:
        objects = [f"'{name}' is a {printable(type(state[name]).__name__)} and " for name in (*AVERAGES, *RAW)
                   if not isinstance(state.get(name, {}), dict | torch.Tensor)]
        others = _weights_under(state, state)
        if others and not objects:
            raise UserError(f'{label}: holds no weights under a usual name; {key_flag(label)} chooses one of '
                            f'{", ".join(map(printable, others))}')
        raise UserError(f'{label}: {"".join(objects[:1])}holds no weights; save the state_dict() of the net, under '
                        f'"model"')
    (name, weights), = candidates.items()
    note = '' if name in USUAL else f"weights under '{printable(name)}'"
    if note and averages and raw:
        note += f", the average of those under '{next(iter(raw))}' (which --checkpoint_key takes)"
    return weights, note


def class_names(state: dict):
    """The class names that a checkpoint says it has, unchecked: 'classes', or 'class_to_idx' of an ImageFolder."""
    numbers = state.get('class_to_idx')
    if isinstance(numbers, dict) and all(type(number) is int for number in numbers.values()):
        return sorted(numbers, key=numbers.get)
    return state.get('classes')


def key_flag(label: str) -> str:
    """The flag that selects a set of weights in the file of a label. In train_student.py it belongs to --path-t."""
    return '--checkpoint_key of train_teacher.py' if label.startswith('--initial_checkpoint') else '--checkpoint_key'


def _has_tensors(value):
    return isinstance(value, dict) and any(isinstance(v, torch.Tensor) for v in value.values())


def _weights_under(state, keys):
    """key -> the state_dict under it, for the keys that have one; 'key/deeper' if it is nested."""
    weights = {}
    for key in keys:
        if not isinstance(key, str):
            continue
        value, path = state.get(key), key
        for _ in range(DEEPEST):
            if not isinstance(value, dict) or _has_tensors(value):
                break
            inner = next((k for k in (*AVERAGES, *RAW, 'module', 'shadow') if isinstance(value.get(k), dict)), None)
            value, path = value.get(inner), f'{path}/{inner}'
        if _has_tensors(value):
            weights[path] = _without_wrappers(value)
    return weights


def _weights_at(state, key, label):
    """The state_dict at `key`, A/B; also the weights whose names begin with 'B.'. Raises UserError."""
    value = state
    for part in key.split('/'):
        prefixed = {k.removeprefix(f'{part}.'): v for k, v in value.items()
                    if isinstance(k, str) and k.startswith(f'{part}.')}
        value = value.get(part, prefixed or None)
        if not isinstance(value, dict):
            known = [printable(path) for path in _weights_under(state, state)]
            raise UserError(f'{label}: --checkpoint_key {key}: no weights are there; '
                            f'{nearest(key, known) if known else "it has no weights under a key"}')
    return _without_wrappers(value)


def _without_wrappers(state):
    return {re.sub(WRAPPERS, '', str(key)).removeprefix('.'): value for key, value in state.items()}


def without_prefix(weights: dict, names) -> tuple[dict, str]:
    """(the weights by the names in a net's state_dict, a text that says what was removed or left out).

    A prefix, for example 'module.' of nn.DataParallel, is removed if more names match without it. Weights without it
    belong to other nets and are left out. Raises ValueError if several prefixes each have all of the net's weights.
    """
    names = {name for name in names if not name.endswith('num_batches_tracked')}
    prefixes = Counter()
    for key in weights:
        parts = key.split('.')
        ends = ('.'.join(parts[i:]) for i in range(len(parts)))
        prefixes.update(key[:len(key) - len(end)] for end in ends if end in names)
    most = max(prefixes.values(), default=0)
    if prefixes[''] == most:
        return weights, ''
    best = [prefix for prefix, count in prefixes.items() if count == most]
    if len(best) > 1 and most == len(names):
        raise ValueError(', '.join(prefix.removesuffix('.') for prefix in sorted(best)))
    prefix = min(best, key=len)
    others = [key for key in weights if not key.startswith(prefix)]
    note = f"prefix '{printable(prefix)}' removed"
    if others:
        first = f'{printable(others[0])}{", ..." if len(others) > 1 else ""}'
        note += f', {counted(len(others), "other")} left out ({first})'
    return _removed(weights, prefix), note


def without_common_prefix(weights: dict) -> tuple[dict, str]:
    """As without_prefix, for an unknown net: removes the prefix that the names of all weights share."""
    prefix = os.path.commonprefix([*weights])
    prefix = prefix[:prefix.rfind('.') + 1]
    return _removed(weights, prefix), f"prefix '{printable(prefix)}' removed" if prefix else ''


def _removed(weights, prefix):
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
