"""The architecture of a checkpoint: by what it says, by its folder's name, or by its keys and shapes."""
import contextlib
import re
from functools import cache
from pathlib import Path

import torch

from helper.errors import UserError

from . import model_dict, model_names
from .find import LIBRARIES, check_name, is_user_file
from .foreign import without_common_prefix

OPTIONS = {     # flag -> the option that names its net
    '--path-t': '--model_t', 'RUN_OR_CHECKPOINT': '--model',
    'TEACHER': 'the net as TEACHER, and this file as --teacher_checkpoint',
    'STUDENT': 'the net as STUDENT, and this file as --student_checkpoint'}


def find_architecture(path: str, checkpoint: dict, flag: str = '--path-t') -> str:
    """The name of the net in a checkpoint of open_checkpoint: its 'arch', else the one in its folder's name.

    Folders: S:{student}_T:..., {model}_{dataset}_lr_..., or one that begins with a model's name up to '_' or its end.
    """
    option, arch = OPTIONS.get(flag), checkpoint.get('arch')
    if isinstance(arch, str):
        if is_user_file(arch):
            advice = f'add {option} {arch}' if option else 'this command has no option for that'
            raise UserError(f'{flag} {path}: a net of the file {arch}, whose code is only run if you say so; {advice}')
        return arch
    folder = Path(path).resolve().parent.name
    match = re.match(r'S[:~](.+?)_T[:~]', folder) or re.match(r'(.+)_[^_]+_lr_', folder)
    if match and match[1] in model_names():
        return match[1]
    if names := [name for name in model_names() if f'{folder}_'.startswith(f'{name}_')]:
        return max(names, key=len)
    advice = 'it as --path-t of train_student.py --evaluate, with --model_t' if flag == '--evaluate' else \
        option or '--model_t'
    if proposals := _propose(checkpoint):
        advice += f', perhaps {" or ".join(proposals)}'
    else:
        advice += '; train_student.py --list prints the names'
    raise UserError(f'{flag} {path}: the folder {folder} does not say which model this is; give {advice}')


def _propose(checkpoint):
    """Names of nets that another program's checkpoint may hold, by its own 'arch', else by its keys and shapes."""
    hint, names = checkpoint.get('their_arch'), []
    if not isinstance(hint, str):
        if not checkpoint.get('model'):
            return []
        try:
            name, _ = recognise(without_common_prefix(checkpoint['model'])[0])
        except UserError:
            return []
        names, hint = [name], name.lower()
    for library in LIBRARIES:
        with contextlib.suppress(UserError):        # not of that library, or it is not installed
            names.append(check_name(f'{library}:{hint}', 0, ''))
    return names + [hint] * (hint in model_dict and hint not in names)


def recognise(weights: dict, label: str = 'weights') -> tuple[str, int]:
    """(key of model_dict, number of classes) of the net with exactly the keys and shapes of `weights`.

    Batch counters are not compared: checkpoints older than torch 0.4.1 have none. Raises UserError that begins with
    `label` and names the nearest nets if none matches.
    """
    shapes = _shapes(weights)
    similarity = {}
    for name in model_dict:
        expected = _expected_shapes(name, shapes)
        if expected == shapes:
            return name, [*expected.values()][-1][0]
        similarity[name] = len(expected.items() & shapes.items()) / len(expected.items() | shapes.items())
    near = sorted(filter(similarity.get, similarity), key=similarity.get, reverse=True)[:3]
    if not near:
        raise UserError(f'{label}: no key and shape in it fits a net of models.model_dict; '
                        f'give a state_dict, or a checkpoint with one under "model" or "state_dict"')
    expected = _expected_shapes(near[0], shapes)
    key, *others = [key for key in {**expected, **shapes} if expected.get(key) != shapes.get(key)]
    more = f', and {len(others)} more' if others else ''
    raise UserError(f'{label}: matches no net of models.model_dict; nearest: {", ".join(near)}; '
                    f'{key} is {shapes.get(key, "missing")}, {near[0]} has {expected.get(key, "none")}{more}')


def _shapes(weights):
    """Key -> shape of a tensor, or the type's name of another object."""
    return {key: tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            for key, value in weights.items() if not key.endswith('num_batches_tracked')}


@cache
def _shapes_for_one_class(name):
    """The shapes of the net for one class. The classifier's weight and bias come last."""
    with torch.device('meta'):      # no memory, no initialisation
        return _shapes(model_dict[name](num_classes=1).state_dict())


def _expected_shapes(name, shapes):
    """The shapes of the net for as many classes as its classifier has in `shapes`."""
    expected = _shapes_for_one_class(name)
    *_, weight, bias = expected
    classes = shapes.get(bias)
    if not isinstance(classes, tuple) or len(classes) != 1:
        return expected
    return {**expected, weight: classes + expected[weight][1:], bias: classes}
