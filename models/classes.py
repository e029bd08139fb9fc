"""Compare the classes of a checkpoint with those of the data by their names, and reorder a net's outputs."""
import torch
from torch import nn

from helper.errors import UserError, listed

from .base import Net

MOST_NAMED = 5      # classes that a message names


def class_order(names, data, what: str) -> list[int] | None:
    """For each class of the data its number in the checkpoint. None if both have the same order, if one of them has no
    names, or if data.same_classes is set.

    names: the classes of an untrusted checkpoint, in its order. Raises UserError that begins with `what` if the names
    differ.
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
        only = [listed([name for name in group if name not in other], MOST_NAMED)
                for group, other in ((names, there), (wanted, here))]
        said = f'its class names are not those of the data: only the checkpoint has {only[0] or "none"}, only the ' \
               f'data have {only[1] or "none"}'
    pairs = [f'{i}: {name} is {other}' for i, (name, other) in enumerate(zip(names, wanted, strict=False))
             if name != other]
    return f'{said}; give data with the same class names, or --same_classes if the classes mean the same in their ' \
           f'order ({listed(pairs, MOST_NAMED)})'


def match_classes(net: nn.Module, names, data, what: str) -> None:
    """Reorder the outputs of `net` from the class order `names` of its checkpoint to that of the data; a line says so.

    Raises UserError as class_order does.
    """
    order = class_order(names, data, what)
    if order is not None:
        reorder_classes(net, order, data.image_size)
        print(f'{what}: has the classes of the data in another order; its outputs are reordered to match the data')


@torch.no_grad()
def reorder_classes(net: nn.Module, order: list[int], image_size: int) -> None:
    """Change `net` in place, so that its logit i is the former logit order[i]. It is put into eval mode.

    If a linear layer gives the logits, its rows are reordered, so that methods that read this layer see the same
    classes. Otherwise the logits themselves are reordered.
    """
    parameter = next(net.parameters())
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(parameter.device)
    wanted = net.eval()(images)[:, order]
    for layer in [*net.modules()][::-1]:
        if type(layer) is nn.Linear and layer.out_features == len(order):
            _reorder_rows(layer, order)
            if torch.allclose(net(images), wanted, rtol=1e-4, atol=1e-5):
                return
            _reorder_rows(layer, [order.index(i) for i in range(len(order))])     # not that layer: undo
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
