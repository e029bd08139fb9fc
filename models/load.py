"""A network from a checkpoint, or with a library's published weights: which one it is, and with its weights."""
import os
import re
from pathlib import Path

from torch import nn

from helper.checkpoint import FORMAT_VERSION, is_ours, load_checkpoint, load_weights, weights_checksum
from helper.errors import UserError, printable, reason
from helper.files import read_json

from . import model_dict, model_names
from .classes import match_classes
from .find import LIBRARIES, NOT_SETTINGS, build, check_name, get_library, is_user_file, parse_name
from .foreign import find_weights, without_common_prefix, without_prefix
from .inputs import Inputs, check_inputs, describe_inputs
from .recognise import recognise

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'     # of a folder that timm and the Hugging Face Hub write
MOST_CLASSES = 10**5


def open_net(path: str, name: str | None = None, flag: str = '--path-t', key: str | None = None,
             inputs: dict | None = None) -> tuple[str, dict]:
    """(name of the net, its checkpoint as of open_checkpoint) for a file, a folder, or a library's published weights,
    timm:NAME or torchvision:NAME, which that library downloads.

    name: the net, if the user gives it. inputs: the preprocessing that the user gives by --mean_t, --std_t, --size_t
    and --interpolation_t. Raises UserError that names `flag`.
    """
    name, checkpoint = _open(path, name, flag, key)
    known, what = checkpoint.get('inputs'), f'{flag} {path}'
    if not inputs:
        return name, checkpoint
    if is_ours(checkpoint) and known is not None:
        known = check_inputs(known, what)
        for key, value in inputs.items():
            if known[key] != value:
                raise UserError(f'--{key}_t {value}: {what} says that its net takes images with {key} '
                                f'{known[key]}; leave it out')
        return name, checkpoint
    if known is None and ('mean' in inputs) != ('std' in inputs):
        raise UserError(f'--mean_t and --std_t: {what} says neither; give both, or none')
    return name, {**checkpoint, 'inputs': {**(known or {}), **inputs}}


def _open(path, name, flag, key):
    if library := get_library(path):
        for option, given in (('--model_t', name), ('--checkpoint_key', key)):
            if given:
                raise UserError(f'{option} {given}: {flag} {path} names the net already; leave one of the two out')
        check_name(path, 0, flag)
        name, checkpoint = LIBRARIES[library].published(path.partition(':')[2], flag)
        return name, checkpoint
    checkpoint = open_checkpoint(path, flag, key)
    if name is None:
        return teacher_name(path, checkpoint, flag), checkpoint
    library = get_library(name)
    if library and 'inputs' not in checkpoint and 'arch' not in checkpoint:     # trained elsewhere: as its library does
        checkpoint = {**checkpoint, 'inputs': LIBRARIES[library].published_inputs(parse_name(name, flag)[0], flag)}
    return name, checkpoint


def open_checkpoint(path: str, flag: str = '--path-t', key: str | None = None) -> dict:
    """The dictionary in an untrusted checkpoint: NAME.pth, a file of safetensors, or a folder with timm's config.json.

    'model' is a state_dict. Checkpoints of this project and timm's folders also have, if known, 'arch', 'num_classes'
    and 'inputs' (the preprocessing, see inputs.Inputs), and whatever else was saved. Files from elsewhere have instead
    'taken', a text that says which weights are loaded, and 'their_arch', their name of the net.

    key: --checkpoint_key. Raises UserError that names `flag`.
    """
    what = f'{flag} {path}'
    if os.path.isfile(os.path.join(path, CONFIG)):
        checkpoint = _read_folder(Path(path), flag)
    else:
        is_safe = path.endswith('.safetensors')
        checkpoint = _read_safetensors(Path(path), flag) if is_safe else load_checkpoint(path, flag)
        if not is_safe and {'identity', 'module', 'stage'} <= checkpoint.keys():
            checkpoint = _of_state(checkpoint, what)
        if is_safe or not is_ours(checkpoint):
            weights, taken = find_weights(checkpoint, what, key)
            known = {name: checkpoint[name] for name in ('epoch', 'accuracy', 'best_acc') if name in checkpoint}
            return {**known, 'model': weights, 'taken': taken, 'their_arch': checkpoint.get('arch')}
    if key is not None:
        raise UserError(f'--checkpoint_key {key}: {what} has one set of weights; leave it out')
    if checkpoint.get('format_version', 0) > FORMAT_VERSION:
        raise UserError(f'{what}: was written by a later version of this project, in format '
                        f'{checkpoint["format_version"]}; this one reads up to {FORMAT_VERSION}')
    classes = checkpoint.get('num_classes')
    if classes is not None and (type(classes) is not int or not 0 < classes <= MOST_CLASSES):
        raise UserError(f'{what}: says that its net has {printable(repr(classes)[:50])} classes instead of a whole '
                        f'number from 1 to {MOST_CLASSES:,}; the file is damaged')
    return checkpoint


def _of_state(state, what):
    """The checkpoint within a last.pth. Raises UserError."""
    if not is_ours(state):
        raise UserError(f'{what}: is the state of a run of an earlier version, from which --resume continues; give the '
                        f'NAME_best.pth beside it')
    if state['stage'] != 'train':
        raise UserError(f'{what}: is the state of a run in its first stage, whose network has not learnt the classes '
                        f'yet; train on with --resume auto')
    epoch, step = state.get('epoch'), state.get('step')
    if type(epoch) is not int or type(step) is not int:
        raise UserError(f'{what}: is an incomplete last.pth; train on with --resume auto')
    print(f'{what}: is used as the checkpoint after '
          + (f'step {step} of epoch {epoch}' if step else f'epoch {epoch - 1}'))
    names = ('model', 'arch', 'num_classes', 'inputs', 'classes', 'split', 'inference_net', 'format_version')
    return {**{name: state[name] for name in names if name in state}, 'epoch': epoch if step else epoch - 1}


def _read_folder(folder, flag):
    config = read_json(folder / CONFIG, f'{flag} {folder / CONFIG}')
    net = config.get('architecture') if isinstance(config, dict) else None
    if not isinstance(net, str):
        raise UserError(f'{flag} {folder / CONFIG}: names no architecture of timm; give the file of safetensors, and '
                        f'--model_t for its net')
    given = config.get('model_args') if isinstance(config.get('model_args'), dict) else {}
    given = {key: value for key, value in given.items() if key not in NOT_SETTINGS}
    found = config.get('pretrained_cfg') if isinstance(config.get('pretrained_cfg'), dict) else config
    size = found.get('input_size')
    inputs = {key: found.get(key) for key in ('mean', 'std', 'interpolation')}
    inputs['size'] = size[-1] if isinstance(size, list) and size else None
    return {'arch': ','.join([f'timm:{net}', *(f'{key}={value}' for key, value in given.items())]),
            'num_classes': config.get('num_classes'), 'inputs': inputs, 'classes': found.get('label_names'),
            'model': _read_safetensors(folder / WEIGHTS, flag)}


def _read_safetensors(file, flag):
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f'{flag} {file}: safetensors is not installed; pip install safetensors') from None
    try:
        return load_file(file)
    except Exception as error:      # of a damaged or missing file
        raise UserError(f'{flag} {file}: is no whole file of safetensors ({reason(error)}); fetch it again') from error


def teacher_name(path: str, checkpoint: dict, flag: str = '--path-t') -> str:
    """The architecture of a checkpoint of open_checkpoint: its 'arch', else the one in its folder's name.

    Folders: S:{student}_T:..., {model}_{dataset}_lr_..., or one that begins with a model's name up to '_' or its end.
    """
    option = {'--path-t': '--model_t', 'RUN_OR_CHECKPOINT': '--model'}.get(flag)
    asked = 'it as --path-t of train_student.py --evaluate, with --model_t' if flag == '--evaluate' else \
        option or '--model_t'
    if isinstance(checkpoint.get('arch'), str):
        if is_user_file(checkpoint['arch']):
            more = f'add {option} {checkpoint["arch"]}' if option else 'that cannot be said here'
            raise UserError(f'{flag} {path}: a net of the file {checkpoint["arch"]}, whose code is only run if you say '
                            f'so; {more}')
        return checkpoint['arch']
    folder = Path(path).resolve().parent.name
    match = re.match(r'S[:~](.+?)_T[:~]', folder) or re.match(r'(.+)_[^_]+_lr_', folder)
    if match and match[1] in model_names():
        return match[1]
    names = [name for name in model_names() if folder == name or folder.startswith(f'{name}_')]
    if not names:
        advice = f'give {asked}, or let its name begin with one of: {", ".join(model_names())}'
        if near := _proposals(checkpoint):
            advice = f'give {asked}, perhaps {" or ".join(near)}'
        raise UserError(f'{flag} {path}: the folder {folder} does not say which model this is; {advice}')
    return max(names, key=len)


def _proposals(checkpoint):
    """Names of nets that a checkpoint from elsewhere may hold, by its own 'arch', else by its keys and shapes."""
    hint, names = checkpoint.get('their_arch'), []
    if not isinstance(hint, str):
        if not checkpoint.get('model'):
            return []
        try:
            name, _ = recognise(without_common_prefix(checkpoint.get('model', {}))[0])
        except UserError:
            return []
        names, hint = [name], name.lower()
    for library in LIBRARIES:
        try:
            check_name(f'{library}:{hint}', 0, '')
            names.append(f'{library}:{hint}')
        except UserError:       # not of that library, or it is not installed
            pass
    return [*names, *(name for name in (hint,) if name in model_dict and name not in names)]


def new_net(path: str, checkpoint: dict, name: str, data, flag: str = '--path-t') -> nn.Module:
    """The net `name` for data.num_classes classes, with new weights and the preprocessing of the checkpoint.

    Raises UserError if the checkpoint has other classes.
    """
    classes = checkpoint.get('num_classes')
    if classes is not None and classes != data.num_classes:
        raise UserError(f'{flag} {path}: a net of {classes} classes, but the data has {data.num_classes}; '
                        f'train one on this data with train_teacher.py')
    inputs, given = checkpoint.get('inputs'), getattr(data, 'inputs', None)
    if inputs is not None:      # for a checkpoint from elsewhere the user may give only some parts
        inputs = check_inputs({**given, **inputs} if 'taken' in checkpoint and given else inputs, f'{flag} {path}')
    net = build(name, data.num_classes, inputs['size'] if inputs else data.image_size, f'{flag} {path}:',
                trains=False)
    if inputs and given and any(inputs[key] != given[key] for key in ('mean', 'std', 'size')):
        seen = Inputs(given, inputs)
        net.inputs = nn.Sequential(seen, net.inputs) if hasattr(net, 'inputs') else seen
        print(f'{flag} {path}: images are converted to what its net has learnt from: {describe_inputs(inputs)}')
    if inputs and given and 'fit' in checkpoint['inputs'] and inputs['fit'] != given['fit']:
        print(f'{flag} {path}: was trained with --fit {inputs["fit"]}, but this run has --fit {given["fit"]}')
    return net


def load_net(path: str, checkpoint: dict, name: str, data, flag: str = '--path-t') -> nn.Module:
    """The net `name` for data.num_classes classes, filled from the checkpoint. Raises UserError if it does not fit.

    Its classes are in the order of the data. Its `checksum` is of the weights in the file, before they are reordered.
    """
    if 'inference_net' in checkpoint:
        raise UserError(f'{flag} {path}: holds the network that --distill {checkpoint["inference_net"]} deploys, not a '
                        f'plain {name}; give the checkpoint of a plain network')
    net = new_net(path, checkpoint, name, data, flag)
    fill(net, checkpoint, f'{flag} {path}', f'not the weights of {name} with {data.num_classes} classes')
    net.checksum = weights_checksum(net)
    match_classes(net, checkpoint.get('classes'), data, f'{flag} {path}')
    return net


def fill(net: nn.Module, checkpoint: dict, what: str, fault: str) -> None:
    """Load the weights of a checkpoint of open_checkpoint. For a file from elsewhere a line says which are loaded.

    Raises UserError that begins with `what`; `fault` follows if the weights do not fit.
    """
    weights, taken = checkpoint['model'], [checkpoint.get('taken')]
    if 'taken' in checkpoint:
        try:
            weights, removed = without_prefix(weights, net.state_dict())
        except ValueError as several:
            raise UserError(f'{what}: holds several such nets; choose one by --checkpoint_key, of {several}') from None
        # googlenet and inception_v3 are built without their auxiliary classifiers.
        aux = [key for key in weights if re.match('aux|Aux', key) and key not in net.state_dict()]
        weights = {key: value for key, value in weights.items() if key not in aux}
        taken += [removed, f'{len(aux)} weights of auxiliary classifiers left out' if aux else '']
    load_weights(net, weights, f'{what}: {fault}')
    odd = [name for name, value in net.state_dict().items() if value.isnan().any()]
    if odd:
        more = f', and {len(odd) - 1} more' if len(odd) > 1 else ''
        raise UserError(f'{what}: {odd[0]} has NaN among its values{more}; give a checkpoint of a run that did not '
                        f'diverge')
    if any(taken):
        print(f'{what}: {", ".join(filter(None, taken))}')
