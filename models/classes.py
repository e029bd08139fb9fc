"""Compare the classes of a checkpoint with the data's, find a net's classifier, and reorder its outputs."""
import torch
from torch import nn

from helper.errors import UserError, counted, listed

from .adapter import Adapter
from .base import Net, noise_images

MAX_NAMED = 5       # classes in a message


def class_order(names, data, label: str) -> list[int] | None:
    """For each class of the data its number in the checkpoint; None if there is nothing to reorder.

    names: the classes of an untrusted checkpoint, in its order. Nothing is reordered if the orders are equal, if one
    side has no names, or if data.same_classes is set. Raises UserError that begins with `label` if the names differ.
    """
    wanted = [*getattr(data, 'classes', ())]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names or not wanted \
            or names == wanted or getattr(data, 'same_classes', False):
        return None
    if sorted(names) == sorted(wanted) and len({*names}) == len(names):
        numbers = {name: i for i, name in enumerate(names)}
        return [numbers[name] for name in wanted]
    fault = 'its classes are in another order than those of the data, and some have the same name'
    if {*names} != {*wanted}:
        only_here, only_data = (listed([name for name in some if name not in others], MAX_NAMED) or 'none'
                                for some, others in ((names, {*wanted}), (wanted, {*names})))
        fault = f'its class names are not those of the data: only the checkpoint has {only_here}, only the data have ' \
                f'{only_data}'
    pairs = [f'{i}: {name} is {other}' for i, (name, other) in enumerate(zip(names, wanted, strict=False))
             if name != other]
    raise UserError(f'{label}: {fault}; give data with the same class names, or --same_classes if the classes mean the '
                    f'same in their order ({listed(pairs, MAX_NAMED)})')


def find_classifier(net: nn.Module, num_classes: int, label: str) -> list[str]:
    """The names in the state_dict of the parameters that have a row for each class. Raises UserError if there are none.
    """
    root = net.net if isinstance(net, Adapter) else net
    try:
        layers = net.classifier_layers()
    except (AttributeError, NotImplementedError):       # the last layer with an output for each class
        layers = [module for module in root.modules() if isinstance(module, (nn.Linear, nn.Conv2d))
                  and module.weight.shape[0] == num_classes][-1:]
    inside = {id(value) for layer in layers for value in layer.parameters() if value.shape[0] == num_classes}
    names = [name for name, value in root.named_parameters() if id(value) in inside]
    if not names:
        raise UserError(f'{label}: the classifier of this net cannot be found; let it be a linear layer with an output '
                        f'for each class')
    return names


def classifier_outputs(weights: dict, classifier: list[str]) -> int | None:
    """The number of outputs of the classifier, the names in `weights`; None if they are missing or of several sizes."""
    sizes = {weights[name].shape[0] for name in classifier if isinstance(weights.get(name), torch.Tensor)
             and weights[name].dim()}
    return sizes.pop() if len(sizes) == 1 else None


def why_new_classifier(weights: dict, classifier: list[str], checkpoint: dict, data, label: str) -> str:
    """Why the classifier of a checkpoint does not fit the data: a text after 'new classifier'. '' if it fits.

    weights: of the checkpoint, by the names in the net. classifier: the names of the net's.
    """
    if not weights.keys() & {*classifier}:
        return f'of {counted(data.num_classes, "class")}, because the checkpoint has none'
    classes, names = classifier_outputs(weights, classifier), checkpoint.get('classes')
    if classes not in (None, data.num_classes):
        return f'of {counted(data.num_classes, "class")} instead of {classes}'
    try:
        class_order(names, data, label)
    except UserError:       # the names differ
        return f'of the classes {listed([*data.classes], MAX_NAMED)} instead of {listed(names, MAX_NAMED)}'
    return ''


def match_classes(net: nn.Module, names, data, label: str) -> None:
    """Reorder the outputs of `net` from its class order `names` to the data's, and print that. Raises UserError.

    Without names the outputs stay in their order, and a line says so.
    """
    order, wanted = class_order(names, data, label), [*getattr(data, 'classes', ())]
    if wanted and not (names and isinstance(names, list)) and not getattr(data, 'same_classes', False):
        print(f'{label}: does not name its classes; its outputs are taken in the order of the data: '
              f'{listed(wanted, MAX_NAMED)}')
    if order is not None:
        reorder_classes(net, order, data.image_size)
        print(f'{label}: has the classes of the data in another order; its outputs are reordered to match the data')


@torch.no_grad()
def reorder_classes(net: nn.Module, order: list[int], image_size: int) -> None:
    """Change `net` in place: its logit i becomes the former logit order[i]. Puts it into eval mode.

    If a linear layer returns the logits, its rows are reordered, so that methods that read this layer get the same
    classes. Otherwise the logits themselves are reordered.
    """
    images = noise_images(image_size).to(next(net.parameters()).device)
    wanted = net.eval()(images)[:, order]
    for layer in [*net.modules()][::-1]:
        if type(layer) is nn.Linear and layer.out_features == len(order):
            _reorder_rows(layer, order)
            if torch.allclose(net(images), wanted, rtol=1e-4, atol=1e-5):
                return
            _reorder_rows(layer, [order.index(i) for i in range(len(order))])     # another layer: undo
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
