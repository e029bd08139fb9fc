"""The teacher's net: whole, with a classifier that --teacher_head fits, or for its features alone."""
import torch
from torch import nn

from helper.checkpoint import weights_checksum
from helper.errors import UserError

from .base import Net, noise_images, probe
from .classes import find_classifier, why_new_classifier
from .load import fill_all, load_net, load_other_size, new_net, refuse_other_than_student, select_weights


def load_teacher_net(path: str, checkpoint: dict, name: str, data, reads_logits: str = '', head: str | None = None
                     ) -> Net:
    """The net `name` with the weights of --path-t, whole as from load_net, or without its classifier. Raises UserError.

    reads_logits: why the run needs the teacher's logits; '' if it only reads features. head: --teacher_head, which
    needs a net without a classifier of the data's classes. For features alone, any net is taken.

    Without its classifier, which has zeros as weights then, the net's has_classifier is False.
    """
    if reads_logits and head is None:
        return load_net(path, checkpoint, name, data, reads_logits=reads_logits)
    label = f'--path-t {path}'
    refuse_other_than_student(checkpoint, label, name)
    net = new_net(path, checkpoint, name, data, appends_classifier=True)
    if head:
        make_linear(net, data.image_size, f'--teacher_head {head}: {name}')
    weights, notes = select_weights(net, checkpoint, label)
    classifier = _classifier_or_none(net, data, label)
    why_new = classifier and why_new_classifier(weights, classifier, checkpoint, data, label)
    if not head and not why_new:
        fill_all(net, checkpoint, name, data, label)
        return net
    if head and not why_new and checkpoint.get('classes'):
        raise UserError(f'--teacher_head {head}: {label} has a classifier of the classes of the data; leave it out')
    weights |= {key: torch.zeros_like(net.state_dict()[key]) for key in classifier}
    notes.append(load_other_size(net, weights, data.num_classes, label))
    net.checksum, net.has_classifier = weights_checksum(net, left_out=classifier), False
    use = f'--teacher_head {head} fits a classifier {why_new or "instead of its own"}' if head else \
        'only its features are used, no classifier'
    print(f'{label}: {"".join(f"{note}, " for note in notes if note)}{use}')
    return net


def _classifier_or_none(net, data, label):
    try:
        return find_classifier(net, data.num_classes, label)
    except UserError:
        return None


@torch.no_grad()
def make_linear(net: Net, image_size: int, label: str) -> None:
    """Raise UserError unless the logits are a linear layer of the embedding. The layer gets a bias if it has none."""
    calls = []      # (input, output) of the layer
    try:
        layer = net.get_classifier()
    except NotImplementedError as error:
        raise UserError(f'{label}: no classifier can be fitted, because {error}; give another net') from error
    handle = layer.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    try:
        out = probe(net, noise_images(image_size))
    finally:
        handle.remove()
    is_linear = isinstance(layer, nn.Linear) and len(calls) == 1 and calls[0][1].equal(out.logits) \
        and torch.allclose(calls[0][0], net.hidden(out.embedding))
    if not is_linear:
        raise UserError(f'{label}: no classifier can be fitted, because its logits are not a linear function of its '
                        f'embedding; give another net')
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(layer.out_features))
