"""Checkpoints from elsewhere: find the weights in the file, and remove the prefix of their names."""
import os
import re
from collections import Counter

import torch

from helper.errors import UserError, nearest, printable

# Where training scripts keep a state_dict, and an average of the weights beside it.
AVERAGES = ('model_ema', 'state_dict_ema', 'ema', 'ema_state_dict', 'model_ema_state_dict', 'ema_model', 'params_ema')
RAW = ('model', 'state_dict', 'net', 'network', 'model_state_dict', 'model_state', 'weights', 'params', 'student',
       'teacher')
USUAL = ('model', 'state_dict')     # not mentioned to the user
DEEPEST = 3     # nested dictionaries around the weights
WRAPPERS = r'(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)'    # anywhere in a name


def find_weights(state: dict, what: str, key: str | None = None) -> tuple[dict, str]:
    """(the state_dict in a checkpoint, a text that says where it was). what: begins the messages.

    key: --checkpoint_key; A/B is B in A. Not given: an average of the weights, else the weights under a usual key, else
    the checkpoint itself. Raises UserError if there are none, or several.
    """
    if key is not None:
        return _at(state, key, what), f"weights under '{printable(key)}'"
    if any(isinstance(value, torch.Tensor) for value in state.values()) and not _sets(state, (*AVERAGES, *RAW)):
        return _as_weights(state), ''
    averages, raw = _sets(state, AVERAGES), _sets(state, RAW)
    found = averages or raw
    if len(found) != 1:
        names = ', '.join(printable(name) for name in (found or _sets(state, [k for k in state if isinstance(k, str)])))
        if found:
            raise UserError(f'{what}: holds several sets of weights; choose one by --checkpoint_key, of {names}')
        objects = [f"'{name}' is a {printable(type(state[name]).__name__)} and " for name in (*AVERAGES, *RAW)
                   if not isinstance(state.get(name, {}), dict | torch.Tensor)]
        if names and not objects:
            raise UserError(f'{what}: holds no weights under a usual name; --checkpoint_key chooses one of {names}')
        raise UserError(f'{what}: {"".join(objects[:1])}holds no weights; save the state_dict() of the net, under '
                        f'"model"')
    (name, weights), = found.items()
    beside = f", the average of those under '{next(iter(raw))}' (which --checkpoint_key takes)" if averages and raw \
        else ''
    return weights, '' if name in USUAL else f"weights under '{printable(name)}'{beside}"


def _sets(state, names):
    """name -> the state_dict under it, for the names that have one; 'name/deeper' if it is nested."""
    found = {}
    for name in names:
        value, path = state.get(name), name
        for _ in range(DEEPEST):
            if not isinstance(value, dict) or any(isinstance(v, torch.Tensor) for v in value.values()):
                break
            inner = next((k for k in (*AVERAGES, *RAW, 'module', 'shadow') if isinstance(value.get(k), dict)), None)
            value, path = value.get(inner), f'{path}/{inner}'
        if isinstance(value, dict) and any(isinstance(v, torch.Tensor) for v in value.values()):
            found[path] = _as_weights(value)
    return found


def _at(state, key, what):
    value = state
    for part in key.split('/'):
        inner = {k.removeprefix(f'{part}.'): v for k, v in value.items()
                 if isinstance(k, str) and k.startswith(f'{part}.')}
        value = value.get(part, inner or None)
        if not isinstance(value, dict):
            names = [*_sets(state, [k for k in state if isinstance(k, str)])]
            raise UserError(f'{what}: --checkpoint_key {key}: no weights are there; '
                            f'{nearest(key, map(printable, names)) if names else "it has no weights under a key"}')
    return _as_weights(value)


def _as_weights(state):
    return {re.sub(WRAPPERS, '', str(key)).removeprefix('.'): value for key, value in state.items()}


def without_prefix(weights: dict, names) -> tuple[dict, str]:
    """(the weights by the names of a net, a text that says what was removed or left out).

    names: of the net's state_dict. A prefix, as 'module.' of nn.DataParallel, is removed if more names match with it
    than without. Weights without the prefix are not the net's and are left out. Raises ValueError if several prefixes
    each have the whole net.
    """
    names = {name for name in names if not name.endswith('num_batches_tracked')}
    prefixes = Counter()
    for key in weights:
        prefixes.update(key[:len(key) - len(end)] for end in _ends(key) if end in names)
    if not prefixes or prefixes[''] == max(prefixes.values()):
        return weights, ''
    most = max(prefixes.values())
    best = [prefix for prefix, count in prefixes.items() if count == most]
    if len(best) > 1 and most == len(names):
        raise ValueError(', '.join(prefix.removesuffix('.') for prefix in sorted(best)))
    prefix = min(best, key=len)
    others = [key for key in weights if not key.startswith(prefix)]
    left = f', {len(others)} others left out ({printable(others[0])}{", ..." if len(others) > 1 else ""})' \
        if others else ''
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}, \
        f"prefix '{printable(prefix)}' removed{left}"


def _ends(key):
    """'a.b.c' -> 'a.b.c', 'b.c', 'c'."""
    yield key
    while '.' in key:
        key = key.partition('.')[2]
        yield key


def without_common_prefix(weights: dict) -> tuple[dict, str]:
    """As without_prefix, for an unknown net: removes the prefix that the names of all weights share."""
    prefix = os.path.commonprefix([*weights])
    prefix = prefix[:prefix.rfind('.') + 1]
    return {key.removeprefix(prefix): value for key, value in weights.items()}, \
        f"prefix '{printable(prefix)}' removed" if prefix else ''
