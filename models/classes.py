"""The classes of a checkpoint and those of the data, which are compared by their names."""
import torch
from torch import nn

from helper.errors import UserError, printable

from .base import Net

MOST_NAMED = 5      # classes that a message names


def class_order(names, data, what: str) -> list[int] | None:
    """For each class of the data its number in a checkpoint, which counts its classes as `names` does; None where both
    count them alike, where one of them does not name them, or where data.same_classes is set.

    names: of an untrusted checkpoint. Raises UserError that begins with `what` where the names differ.
    """
    wanted = [*getattr(data, 'classes', ())]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names or not wanted \
            or names == wanted or getattr(data, 'same_classes', False):
        return None
    if sorted(names) != sorted(wanted) or len({*names}) < len(names):
        raise UserError(f'{what}: {_difference(names, wanted)}')
    numbers = {name: i for i, name in enumerate(names)}
    return [numbers[name] for name in wanted]


def _difference(names, wanted):
    here, there = {*names}, {*wanted}
    said = 'its classes are in another order than those of the data, and some have the same name'
    if here != there:
        only = [_some([name for name in names if name not in there]), _some([n for n in wanted if n not in here])]
        said = f'its class names are not those of the data: only the checkpoint has {only[0] or "none"}, only the ' \
               f'data have {only[1] or "none"}'
    pairs = [f'{i}: {name} is {other}' for i, (name, other) in enumerate(zip(names, wanted, strict=False))
             if name != other]
    return f'{said}; give data with the same class names, or --same_classes if the classes mean the same in their ' \
           f'order ({_some(pairs)})'


def _some(names):
    """The first of some names, as text."""
    more = f' and {len(names) - MOST_NAMED} more' if len(names) > MOST_NAMED else ''
    return ', '.join(map(printable, names[:MOST_NAMED])) + more


def match_classes(net: nn.Module, names, data, what: str) -> None:
    """Let `net`, whose checkpoint counts its classes as `names` does, count them as the data do; a line says so.

    Raises UserError as class_order does.
    """
    order = class_order(names, data, what)
    if order is not None:
        reorder_classes(net, order, data.image_size)
        print(f'{what}: has the classes of the data in another order; its outputs are brought into that of the data')


@torch.no_grad()
def reorder_classes(net: nn.Module, order: list[int], image_size: int) -> None:
    """Change `net` in place so that its logit i is what logit order[i] was. It is put into eval mode.

    Where one linear layer gives the logits, its rows are reordered, so that methods which read this layer see the same
    classes; otherwise the logits are.
    """
    parameter = next(net.parameters())
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(parameter.device)
    wanted = net.eval()(images)[:, order]
    for layer in [*net.modules()][::-1]:
        if type(layer) is nn.Linear and layer.out_features == len(order):
            _reorder_rows(layer, order)
            if torch.allclose(net(images), wanted, rtol=1e-4, atol=1e-5):
                return
            _reorder_rows(layer, [order.index(i) for i in range(len(order))])     # some other layer, as it was
    net.class_order = order
    if not isinstance(net, Net):
        net.register_forward_hook(lambda module, inputs, logits: logits[:, order])
        return
    compute = net.outputs

    def outputs(x, preact=False):
        out = compute(x, preact)
        return out._replace(logits=out.logits[:, order])

    def get_classifier():
        raise NotImplementedError('its classes are reordered behind its classifier')
    net.outputs, net.get_classifier = outputs, get_classifier


def _reorder_rows(layer, order):
    for value in (layer.weight, layer.bias):
        if value is not None:
            value.copy_(value[order].clone())
