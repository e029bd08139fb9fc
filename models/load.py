"""A network from a checkpoint: open it, find its architecture, build it, load the weights, match the classes."""
import contextlib
import os
import re
import shlex
from pathlib import Path

from torch import nn

from helper.checkpoint import FORMAT_VERSION, is_project_checkpoint, load_checkpoint, load_weights, weights_checksum
from helper.errors import UserError, counted, listed, printable

from .classes import MAX_NAMED, classifier_outputs, find_classifier, match_classes
from .find import LIBRARIES, build, get_library, parse_name
from .foreign import CONFIG, WEIGHTS, class_names, find_weights, key_flag, read_folder, read_safetensors, without_prefix
from .inputs import Inputs, check_inputs
from .quantisation import RANGES, Quantised, check_ranges, quantise, remove_rounding
from .recognise import find_architecture

MOST_CLASSES = 10**5
CHECKPOINT_KEYS = ('model', 'arch', 'num_classes', 'inputs', 'classes', 'split', 'val_fraction', 'inference_net',
                   'format_version')        # of a last.pth that is used as a checkpoint


def open_net(path: str, name: str | None = None, flag: str = '--path-t', key: str | None = None,
             inputs: dict | None = None) -> tuple[str, dict]:
    """(name, checkpoint of open_checkpoint) for a file, a folder, or a net of a library with weights that it downloads.

    name: if the user gives it. inputs: given by --mean_t, --std_t, --size_t and --interpolation_t. Raises UserError.
    """
    if library := get_library(path):
        for option, value in (('--model_t', name), ('--checkpoint_key', key)):
            if value:
                raise UserError(f'{option} {value}: {flag} {path} names the net already; leave one of the two out')
        file_flag = flag if flag == '--initial_checkpoint' else ''      # else the advice names --model_t too
        name, checkpoint = LIBRARIES[library].published(path.partition(':')[2], flag, file_flag)
    else:
        checkpoint = open_checkpoint(path, flag, key)
        name = find_architecture(path, checkpoint, flag) if name is None else name
        library = get_library(name)
        if library and not {'inputs', 'arch'} & checkpoint.keys():      # of another program: as the library trains it
            checkpoint['inputs'] = LIBRARIES[library].published_inputs(parse_name(name, flag)[0], flag)
    if inputs:
        checkpoint = {**checkpoint, 'inputs': _merge_inputs(checkpoint, inputs, f'{flag} {path}')}
    return name, checkpoint


def _merge_inputs(checkpoint, inputs, label):
    """The checkpoint's preprocessing with the user's. This project's checkpoints allow no other. Raises UserError."""
    known = checkpoint.get('inputs')
    if is_project_checkpoint(checkpoint) and known is not None:
        checked = check_inputs(known, label)
        for key, value in inputs.items():
            if checked[key] != value:
                raise UserError(f'--{key}_t {value}: {label} says that its net takes images with {key} '
                                f'{checked[key]}; leave it out')
        return known
    if known is None and ('mean' in inputs) != ('std' in inputs):
        raise UserError(f'--mean_t and --std_t: {label} says neither; give both, or none')
    return {**(known or {}), **inputs}


def open_checkpoint(path: str, flag: str = '--path-t', key: str | None = None) -> dict:
    """The dictionary in an untrusted checkpoint: NAME.pth, a file of safetensors, or a folder with timm's config.json.

    'model' is a state_dict. Checkpoints of this project and timm's folders also have, if known, 'arch', 'num_classes',
    'inputs' (see inputs.Inputs), and whatever else was saved. Other programs' files have instead 'source', a text that
    says which weights are loaded, and 'their_arch', their name of the net. key: --checkpoint_key. Raises UserError.
    """
    label = f'{flag} {path}'
    if os.path.isfile(os.path.join(path, CONFIG)):
        checkpoint, is_foreign = read_folder(Path(path), flag), False
    elif os.path.isdir(path) and not any(Path(path).glob('*.pth')):
        raise UserError(f'{label}: is a folder without a checkpoint, NAME.pth, and without timm\'s {CONFIG}; give a '
                        f'file, or a folder with {CONFIG} and {WEIGHTS}')
    elif path.endswith('.safetensors'):
        checkpoint, is_foreign = read_safetensors(Path(path), flag), True
    else:
        checkpoint = load_checkpoint(path, flag)
        if {'identity', 'module', 'stage'} <= checkpoint.keys():
            checkpoint = _checkpoint_in_state(checkpoint, label)
        is_foreign = not is_project_checkpoint(checkpoint)
    if is_foreign:
        weights, source = find_weights(checkpoint, label, key)
        known = {name: checkpoint[name] for name in ('epoch', 'accuracy', 'best_acc') if name in checkpoint}
        names = class_names(checkpoint)
        return {**known, **({'classes': names} if names else {}), 'model': weights, 'source': source,
                'their_arch': checkpoint.get('arch')}
    if key is not None:
        raise UserError(f'--checkpoint_key {key}: {label} has one set of weights; leave it out')
    if checkpoint.get('format_version', 0) > FORMAT_VERSION:
        raise UserError(f'{label}: was written by a later version of this project, in format '
                        f'{checkpoint["format_version"]}; this one reads up to {FORMAT_VERSION}')
    classes = checkpoint.get('num_classes')
    if classes is not None and (type(classes) is not int or not 0 <= classes <= MOST_CLASSES):
        raise UserError(f'{label}: says that its net has {printable(repr(classes)[:50])} classes instead of a whole '
                        f'number from 0 to {MOST_CLASSES:,}; the file is damaged')
    return checkpoint


def _checkpoint_in_state(state, label):
    """The checkpoint within a last.pth. Raises UserError."""
    if not is_project_checkpoint(state):
        raise UserError(f'{label}: is the state of a run of an earlier version, from which --resume continues; give '
                        f'the NAME_best.pth beside it')
    if state['stage'] != 'train':
        raise UserError(f'{label}: is the state of a run in its first stage, whose network has not learnt the classes '
                        f'yet; train on with --resume auto')
    epoch, step = state.get('epoch'), state.get('step')
    if type(epoch) is not int or type(step) is not int:
        raise UserError(f'{label}: is an incomplete last.pth; train on with --resume auto')
    print(f'{label}: is used as the checkpoint after '
          + (f'step {step} of epoch {epoch}' if step else f'epoch {epoch - 1}'))
    return {**{name: state[name] for name in CHECKPOINT_KEYS if name in state}, 'epoch': epoch if step else epoch - 1}


def new_net(path: str, checkpoint: dict, name: str, data, flag: str = '--path-t',
            appends_classifier: bool = False) -> nn.Module:
    """The net `name` for data.num_classes classes with new weights and the checkpoint's preprocessing.

    appends_classifier: see models.find.build. Raises UserError.
    """
    label = f'{flag} {path}'
    inputs, data_inputs = checkpoint.get('inputs'), getattr(data, 'inputs', None)
    if inputs is None:
        return build(name, data.num_classes, data.image_size, f'{label}:', trains=False,
                     appends_classifier=appends_classifier)
    if 'source' in checkpoint and data_inputs:      # the user may give only some parts, for another program's file
        inputs = {**data_inputs, **inputs}
    inputs = check_inputs(inputs, label)
    net = build(name, data.num_classes, inputs['size'], f'{label}:', trains=False,
                appends_classifier=appends_classifier)
    if RANGES in checkpoint.get('model', ()):
        quantise(net, inputs['size'], label)
    if data_inputs and any(inputs[key] != data_inputs[key] for key in ('mean', 'std', 'size')):
        conversion = Inputs(data_inputs, inputs)
        net.inputs = nn.Sequential(conversion, net.inputs) if hasattr(net, 'inputs') else conversion
        mean, std = (', '.join(f'{value:.4g}' for value in inputs[name]) for name in ('mean', 'std'))
        size = '' if inputs['size'] == data_inputs['size'] else f'{inputs["size"]} pixels ({inputs["interpolation"]}), '
        print(f'{label}: images are converted to what its net has learnt from: {size}mean {mean}, std {std}')
    if data_inputs and 'fit' in checkpoint['inputs'] and inputs['fit'] != data_inputs['fit']:
        print(f'{label}: was trained with --fit {inputs["fit"]}, but this run has --fit {data_inputs["fit"]}')
    elif data_inputs and {'fit', 'crop_pct'} <= checkpoint['inputs'].keys():
        for key in ('crop_pct', 'interpolation'):
            if inputs[key] != data_inputs[key]:
                print(f'{label}: was tested on images with {key} {inputs[key]}, but this run has {data_inputs[key]}')
    return net


def refuse_other_classes(classes, path, name, data, flag, reads_logits=''):
    """Raise UserError if a net of `classes` classes (None: unknown, 0: without a classifier) does not suit the data."""
    if classes in (None, data.num_classes):
        return
    fault = f'a net of {counted(classes, "class")}, but the data has {data.num_classes}' if classes else \
        'a net without a classifier'
    advice = 'train one on this data with train_teacher.py'
    if flag == '--path-t':
        start = ['--pretrained'] if get_library(path) else ['--initial_checkpoint', path]
        command = ['python', 'train_teacher.py', '--model', name, *start, *getattr(data, 'flags', ()),
                   '--freeze_epochs', '1']
        advice = f'fine-tune it first: {shlex.join(command)}'
    if reads_logits:
        fault += f', and {reads_logits}'
        advice = f'add --teacher_head linear, which fits a classifier to the training images, or {advice}'
    raise UserError(f'{flag} {path}: {fault}; {advice}')


def load_net(path: str, checkpoint: dict, name: str, data, flag: str = '--path-t', reads_logits: str = '') -> nn.Module:
    """The net `name` for data.num_classes classes, with the checkpoint's weights. Raises UserError if they do not fit.

    Its classes are in the data's order. Its `checksum` is of the weights in the file, before they are reordered.
    reads_logits: for the advice, why a run of train_student.py needs logits.
    """
    label = f'{flag} {path}'
    refuse_other_than_student(checkpoint, label, name)
    refuse_other_classes(checkpoint.get('num_classes'), path, name, data, flag, reads_logits)
    net = new_net(path, checkpoint, name, data, flag)
    if 'source' in checkpoint and flag == '--path-t':       # only the weights say how many classes it has
        refuse_other_classes(_count_classes(net, checkpoint, data, label), path, name, data, flag, reads_logits)
    fill_all(net, checkpoint, name, data, label)
    if flag == '--path-t' and isinstance(net, Quantised):
        print(f'{label}: teaches without the rounding of --qat')
        remove_rounding(net)
    return net


def fill_all(net: nn.Module, checkpoint: dict, name: str, data, label: str) -> None:
    """Load all weights of a checkpoint into the net `name`; see load_net. Raises UserError."""
    fill(net, checkpoint, label, f'not the weights of {name} with {data.num_classes} classes')
    net.checksum = weights_checksum(net)
    match_classes(net, checkpoint.get('classes'), data, label)


def _count_classes(net, checkpoint, data, label):
    """The outputs of the classifier in a checkpoint, 0 if it alone is missing; None if they cannot be found."""
    weights, _ = select_weights(net, checkpoint, label)
    with contextlib.suppress(UserError):
        classifier = find_classifier(net, data.num_classes, label)
        missing = {name for name in net.state_dict() if not name.endswith('num_batches_tracked')} - weights.keys()
        return 0 if missing == {*classifier} else classifier_outputs(weights, classifier)
    return None


def refuse_other_than_student(checkpoint: dict, label: str, name: str) -> None:
    """Raise UserError if a checkpoint holds the network of a method that deploys more than the student `name`."""
    if 'inference_net' in checkpoint:
        raise UserError(f'{label}: holds the network that --distill {checkpoint["inference_net"]} deploys, not a '
                        f'plain {name}; give the checkpoint of a plain network')


def fill(net: nn.Module, checkpoint: dict, label: str, fault: str) -> None:
    """Load the weights of a checkpoint of open_checkpoint; for another program's file print which. Raises UserError."""
    weights, notes = select_weights(net, checkpoint, label)
    load_weights(net, weights, f'{label}: {fault}')
    refuse_nan(net, label)
    if isinstance(net, Quantised):
        check_ranges(net, label)
    if any(notes):
        print(f'{label}: {", ".join(filter(None, notes))}')


def select_weights(net: nn.Module, checkpoint: dict, label: str) -> tuple[dict, list]:
    """(the weights of a checkpoint by the names in the net's state_dict, texts that say which, or None). Raises
    UserError if the file of another program holds several such nets."""
    weights, notes = {**checkpoint['model']}, [checkpoint.get('source')]
    if 'source' in checkpoint:
        try:
            weights, removed = without_prefix(weights, net.state_dict())
        except ValueError as prefixes:
            raise UserError(f'{label}: holds several such nets; choose one by {key_flag(label)}, of '
                            f'{prefixes}') from None
        # googlenet and inception_v3 are built without their auxiliary classifiers.
        auxiliary = [key for key in weights if re.match('aux|Aux', key) and key not in net.state_dict()]
        weights = {key: value for key, value in weights.items() if key not in auxiliary}
        notes += [removed, f'{len(auxiliary)} weights of auxiliary classifiers left out' if auxiliary else '']
    return weights, notes


def load_other_size(net: nn.Module, weights: dict, num_classes: int, label: str) -> str:
    """Load weights whose classifier fits; a net of timm resamples those of another image size. Raises UserError.

    Returns a note of what was resampled, or ''.
    """
    note, resample = '', getattr(net, 'resample', None)
    fits = all(getattr(weights.get(key), 'shape', None) == value.shape for key, value in net.state_dict().items())
    if resample and not fits and (resampled := resample(weights, num_classes)):
        changed = [key for key in resampled if key in weights and weights[key].shape != resampled[key].shape]
        note = f'{listed(changed, MAX_NAMED)} resampled by timm for images of {net.image_size} pixels'
        weights = resampled
    load_weights(net, weights, f'{label}: not the weights of this net with another classifier')
    refuse_nan(net, label)
    return note


def refuse_nan(net: nn.Module, label: str) -> None:
    """Raise UserError if a weight of the net is NaN."""
    if with_nan := [name for name, value in net.state_dict().items() if value.isnan().any()]:
        more = f', and {len(with_nan) - 1} more' if len(with_nan) > 1 else ''
        raise UserError(f'{label}: {with_nan[0]} has NaN among its values{more}; give a checkpoint of a run that did '
                        f'not diverge')
