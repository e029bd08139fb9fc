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
        raise UserError(f'{what}: its classes are {_some(names, wanted)}, those of the data are '
                        f'{_some(wanted, names)}; give data with the same class names, or --same_classes if the names '
                        f'mean the same in this order')
    numbers = {name: i for i, name in enumerate(names)}
    return [numbers[name] for name in wanted]


def _some(names, others):
    """Names that are not among the others, or the first that differ in their place, as text."""
    shown = [name for name in names if name not in {*others}] or \
        [name for name, other in zip(names, others, strict=False) if name != other] or names
    more = f' and {len(shown) - MOST_NAMED} more' if len(shown) > MOST_NAMED else ''
    return ', '.join(map(printable, shown[:MOST_NAMED])) + more


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
