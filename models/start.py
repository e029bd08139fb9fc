"""Start from pretrained weights: load them into a net, with a new classifier if the data has other classes."""
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from helper.checkpoint import weights_checksum
from helper.errors import UserError, printable

from .classes import class_order, find_classifier, why_new_classifier
from .find import LIBRARIES, get_library, is_user_file, parse_name
from .inputs import check_parts
from .load import load_other_size, open_net, refuse_other_than_student, select_weights
from .quantisation import RANGES

CHECKSUM = 'initial weights (checksum)'     # key in parameters.json and last.pth


@dataclass
class Start:
    """Pretrained weights: what --pretrained or --initial_checkpoint opened."""

    label: str              # the flag and its value, which begin messages
    checkpoint: dict        # of models.load.open_net
    inputs: dict            # known parts of the preprocessing in the training of these weights, see models.inputs
    checksum: int | None = None     # of the weights in the state of --resume; then `checkpoint` is empty


def open_published(model: str) -> Start:
    """The weights that its library publishes for the net `model`. Raises UserError."""
    label = f'--pretrained {model}'
    plain, settings = parse_name(model, '--pretrained')
    name, checkpoint = LIBRARIES[get_library(model)].published(plain, '--pretrained', '--initial_checkpoint')
    if not parse_name(name, label)[1].items() <= settings.items():
        raise UserError(f'{label}: these weights were trained with other settings of the net; name it {name}')
    return Start(label, checkpoint, check_parts(checkpoint['inputs'], label))


def published_inputs(model: str) -> dict:
    """The preprocessing of the weights that its library publishes for the net `model`. Raises UserError."""
    plain, _ = parse_name(model, '--pretrained')
    return check_parts(LIBRARIES[get_library(model)].published_inputs(plain, '--pretrained'), f'--pretrained {model}')


def open_initial(path: str, model: str, flag: str, key: str | None = None) -> Start:
    """The weights of --initial_checkpoint `path` for the net `model`. flag: --model or --model_s. Raises UserError.

    path: all that models.load.open_net reads. key: --checkpoint_key.
    """
    option = '--initial_checkpoint'
    label = f'{option} {path}'
    name, checkpoint = open_net(path, None if get_library(path) else model, option, key)
    arch = name if get_library(path) else checkpoint.get('arch')
    if isinstance(arch, str) and _weights_name(arch, label) != _weights_name(model, flag):
        raise UserError(f'{label}: holds the weights of {printable(arch)}, but {flag} is {model}; give the checkpoint '
                        f'of such a net, or {flag} {printable(arch)}')
    refuse_other_than_student(checkpoint, label, model)
    return Start(label, checkpoint, check_parts(checkpoint.get('inputs') or {}, label))


def _weights_name(name, flag):
    """The part of a net's name that decides which weights fit: without settings, tag, CIFAR stem and folder."""
    if library := get_library(name):
        return f'{library}:{parse_name(name, flag)[0].partition(".")[0]}'
    return Path(name).name if is_user_file(name) else name.removesuffix('_cifar')


def load_start(net: nn.Module, start: Start | None, data) -> dict:
    """Load pretrained weights into a new net for the classes of `data`; with None the net stays as it is.

    The classifier gets new weights if its classes differ from the data's. Prints what is loaded and what is new.
    Returns {CHECKSUM: checksum of the loaded weights} for parameters.json, {} for None. Raises UserError if anything
    but the classifier does not fit.
    """
    if start is None:
        return {}
    if start.checksum is not None:
        print(f'{start.label}: the weights are those of the resumed run')
        return {CHECKSUM: start.checksum}
    label, initial = start.label, net.state_dict()
    weights, notes = select_weights(net, start.checkpoint, label)
    if weights.pop(RANGES, None) is not None:
        notes.append('its activation ranges of --qat left out')
    classifier = find_classifier(net, data.num_classes, label)
    if why_new := why_new_classifier(weights, classifier, start.checkpoint, data, label):
        new, ending = classifier, f'; new classifier ({", ".join(classifier)}) {why_new}'
        weights |= {key: initial[key] for key in new}
    else:
        new, ending = [], ', with the classifier'
        order = class_order(start.checkpoint.get('classes'), data, label)
        if order is not None:
            weights |= {key: weights[key][order] for key in classifier if key in weights}
            ending += ', whose classes are reordered to match the data'
    notes.append(load_other_size(net, weights, data.num_classes, label))
    # torch's initial weights: timm's are larger for fewer classes in EfficientNets, which then learn slowly.
    for name in dict.fromkeys(key.rpartition('.')[0] for key in new):
        layer = getattr(net, 'net', net).get_submodule(name)
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.reset_parameters()
    count = f'{len(initial) - len(new)} of {len(initial)}' if new else f'all {len(initial)}'
    print(f'{label}: {"".join(f"{note}, " for note in notes if note)}{count} tensors loaded{ending}')
    return {CHECKSUM: weights_checksum(net, left_out=new)}
