"""Which network a state_dict belongs to, read from its keys and shapes alone."""
from functools import cache

import torch

from helper.errors import UserError

from . import model_dict


def recognise(weights: dict, what: str = 'weights') -> tuple[str, int]:
    """(key of model_dict, classes) of the net that has exactly the keys and shapes of `weights`.

    Batch counters are left out of the comparison: checkpoints older than torch 0.4.1 have none. Raises UserError that
    begins with `what` and names the nearest nets when none matches.
    """
    found = _shapes(weights)
    likeness = {}
    for name in model_dict:
        own = _expected(name, found)
        if own == found:
            return name, _classes(own)
        likeness[name] = len(own.items() & found.items()) / len(own.items() | found.items())
    near = sorted((name for name in likeness if likeness[name]), key=likeness.get, reverse=True)[:3]
    if not near:
        raise UserError(f'{what}: no key and shape in it is that of a net of models.model_dict; '
                        f'give a state_dict, or a checkpoint with one under "model" or "state_dict"')
    own = _expected(near[0], found)
    odd = [key for key in {**own, **found} if own.get(key) != found.get(key)]
    more = f', and {len(odd) - 1} more' if len(odd) > 1 else ''
    raise UserError(f'{what}: matches no net of models.model_dict; nearest: {", ".join(near)}; '
                    f'{odd[0]} is {found.get(odd[0], "missing")}, {near[0]} has {own.get(odd[0], "none")}{more}')


def _shapes(weights):
    """Key -> shape, or the name of what is no tensor."""
    return {key: tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            for key, value in weights.items() if not key.endswith('num_batches_tracked')}


@cache
def _one_class(name):
    """The shapes of the net for one class. The classifier's weight and bias come last."""
    with torch.device('meta'):      # no memory, no initialisation
        return _shapes(model_dict[name](num_classes=1).state_dict())


def _classes(shapes):
    return [*shapes.values()][-1][0]


def _expected(name, found):
    """The shapes of the net for as many classes as `found` has in this net's classifier."""
    own = _one_class(name)
    *_, weight, bias = own
    classes = found.get(bias)
    if not isinstance(classes, tuple) or len(classes) != 1:
        return own
    return {**own, weight: classes + own[weight][1:], bias: classes}
