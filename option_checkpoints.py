"""The checkpoints that a command line names, and the options that they set unless the flags are given.

These are the teacher's checkpoint, initial weights, the state of --resume, and the checkpoint of --evaluate.
"""
import contextlib
import os

import torch
from torch import nn

from dataset import FROM_PRETRAINED, dataset_key, default_crop, source_dict
from dataset.crop import CROP_PCT, INTERPOLATION
from dataset.teacher_head import add_head
from distiller_zoo import get_method
from distiller_zoo.checks import why_logits
from helper import distributed
from helper.checkpoint import is_project_checkpoint, load_checkpoint
from helper.cli import as_list, comma_list
from helper.errors import UserError
from helper.resume import saved_path
from helper.run_folder import RunPaths
from helper.state import PREVIOUS
from models.ensemble import as_teacher, options_of_teachers
from models.inputs import check_parts
from models.load import open_net
from models.start import CHECKSUM, Start, open_initial, open_published, published_inputs
from models.teacher import load_teacher_net
from option_checks import check_crop

LARGEST_IMAGE = 512     # pixels, of --image_size
TRAIN_INTERPOLATIONS = ('bilinear', 'bicubic')      # values of --train_interpolation besides random
TEST_PREPROCESSING = {'interpolation': INTERPOLATION, 'crop_pct': CROP_PCT}     # option -> default


def follows_checkpoint_size(opt) -> bool:
    """Whether a checkpoint sets opt.image_size: --image_size is not given, and the data can have any size."""
    return 'image_size' not in opt.flags.given and dataset_key(opt.dataset) in source_dict


def set_crop_options(opt) -> None:
    """Set opt.crop and opt.train_interpolation unless they are given.

    opt.image_size and opt.interpolation must be set. Raises UserError for flags that do not suit the crop.
    """
    _set_crop(opt)
    if opt.crop == 'resized' and opt.interpolation in TRAIN_INTERPOLATIONS \
            and 'train_interpolation' not in opt.flags.given:
        opt.train_interpolation = opt.interpolation
    check_crop(opt)


def _set_crop(opt):
    if 'crop' not in opt.flags.given:
        opt.crop = default_crop(opt)


def set_preprocessing(opt, start: Start | None, checkpoint_t: dict | list | None = None,
                         resumes: bool = True) -> dict:
    """Take preprocessing options that are not given from the initial weights `start`, or from the teacher.

    checkpoint_t: the teacher's checkpoint; of several teachers, the first one's is used. resumes: take the options of
    the run that --resume continues, if there is one. Returns the preprocessing of the initial weights, for
    get_dataloaders; {} without them. Prints a line if the image size changes. Raises UserError.
    """
    label, inputs = (start.label, start.inputs) if start else ('', {})
    inputs_t = {}
    if checkpoint_t:
        label_t = f'--path-t {as_list(opt.path_t)[0]}'
        inputs_t = check_parts(as_list(checkpoint_t)[0].get('inputs') or {}, label_t)
        label = label if 'size' in inputs else label_t
    _set_image_size(opt, {**inputs_t, **inputs}, label)
    _set_crop(opt)
    if dataset_key(opt.dataset) in source_dict:
        _set_test_images(opt, inputs, inputs_t, _saved_options(opt) if resumes else None)
    set_crop_options(opt)
    return inputs


def _set_image_size(opt, inputs, label):
    """Set opt.image_size to the size in a checkpoint's preprocessing `inputs`, if follows_checkpoint_size(opt)."""
    size = inputs.get('size', opt.image_size)
    if not follows_checkpoint_size(opt) or size == opt.image_size:
        return
    if not 8 <= size <= LARGEST_IMAGE:
        raise UserError(f'{label}: its net takes images of {size} pixels; give --image_size, from 8 to {LARGEST_IMAGE}')
    print(f'{label}: its net takes images of {size} pixels, so --image_size is {size}')
    opt.image_size = size


def _set_test_images(opt, start, teacher, saved):
    """Set opt.interpolation and opt.crop_pct: as given, else of the resumed run, the initial weights or the teacher.

    start, teacher: preprocessing of the initial weights and of the teacher. saved: result of _saved_options. An option
    is set to None for the value in `start`, or else for the default, as in runs of versions without these options.
    """
    has_crop_pct = opt.crop == 'resized' and opt.fit == teacher.get('fit', opt.fit) == 'crop'
    for name, default in TEST_PREPROCESSING.items():
        if name in opt.flags.given:
            value = getattr(opt, name)
        elif saved is not None:
            value = saved.get(name)
        elif name in start or name == 'crop_pct' and not has_crop_pct:
            value = None
        else:
            value = teacher.get(name)
        setattr(opt, name, None if value == default and name not in start else value)


def _saved_options(opt):
    """The options TEST_PREPROCESSING of the run that --resume continues, unless they are None; None without a run."""
    identity = distributed.broadcast(lambda: _saved_state(opt).get('identity'))
    return identity and check_parts({name: identity.get(name) for name in TEST_PREPROCESSING}, f'--resume {opt.resume}')


def _saved_state(opt):
    """The state that --resume continues; {} if there is none, or if --overwrite may replace it."""
    if opt.resume and not opt.overwrite:
        paths = RunPaths.of_student(opt) if 'path_t' in opt else RunPaths.of_teacher(opt)
        path = saved_path(opt, paths.folder)
        for file in (path, path.with_name(PREVIOUS)):
            with contextlib.suppress(UserError):
                state = load_checkpoint(str(file), '--resume')
                if isinstance(state.get('identity'), dict):
                    return state
    return {}


def set_evaluation_preprocessing(opt, checkpoint: dict, label: str) -> dict:
    """Take opt.image_size, opt.fit and opt.crop, unless given, from a checkpoint that is only evaluated.

    Returns the checkpoint's preprocessing, for get_dataloaders; {} if it has none. Raises UserError.
    """
    inputs = check_parts(checkpoint.get('inputs') or {}, label)
    _set_image_size(opt, inputs, label)
    _set_crop(opt)
    if inputs and dataset_key(opt.dataset) in source_dict:
        if 'fit' in inputs and 'fit' not in opt.flags.given:
            opt.fit = inputs['fit']
        crop_pct = inputs.get('crop_pct', 1.0 if is_project_checkpoint(checkpoint) else None)
        if crop_pct is not None and 'crop' not in opt.flags.given:
            opt.crop = 'resized' if crop_pct < 1 else 'padded'
    check_crop(opt)
    return inputs


def warn_of_split(opt, checkpoint: dict, label: str) -> None:
    """Print a line if the net of a checkpoint was trained with a --split that differs from this run's."""
    split = checkpoint.get('split')
    if isinstance(split, list) and split != opt.split:
        print(f'{label}: its net was trained with --split {comma_list(split)}, so the test images of this run may be '
              f'among its training images, and its accuracy on them too high')


def warn_of_val_fraction(opt, checkpoint: dict, label: str) -> None:
    """Print a line if the net of a checkpoint may have been trained on images that --val_fraction holds out here."""
    fraction = checkpoint.get('val_fraction')
    fraction = fraction if isinstance(fraction, float) else 0.0
    if opt.val_fraction is not None and fraction < opt.val_fraction:        # a larger part contains a smaller one
        trained = f'with --val_fraction {fraction:g}' if fraction else 'without --val_fraction'
        print(f'{label}: its net was trained {trained}, so the validation images of this run may be among its training '
              f'images, and its accuracy on them too high')


def open_teacher(opt) -> tuple[str | list, dict | list]:
    """(name of the teacher's net, its checkpoint) from models.load.open_net; two lists for several teachers."""
    names, checkpoints = zip(*map(_open_teacher, options_of_teachers(opt)), strict=True)
    return ([*names], [*checkpoints]) if isinstance(opt.path_t, list) else (names[0], checkpoints[0])


def _open_teacher(opt):
    given = {name: value for name in ('mean', 'std', 'size', 'interpolation')
             if (value := getattr(opt, f'{name}_t')) is not None}
    name, checkpoint = open_net(opt.path_t, opt.model_t, key=opt.checkpoint_key, inputs=given)
    warn_of_split(opt, checkpoint, f'--path-t {opt.path_t}')
    may_know_data = is_project_checkpoint(checkpoint) or not opt.teacher_head
    if may_know_data and not opt.evaluate:      # --evaluate does not measure validation images
        warn_of_val_fraction(opt, checkpoint, f'--path-t {opt.path_t}')
    return name, checkpoint


def load_teacher(opt, checkpoint: dict | list, data, device: torch.device) -> nn.Module:
    """The teacher for the data with its --teacher_head, or an Ensemble of several. All processes must call this.

    checkpoint: of open_teacher. opt.model_t must be set.
    """
    nets, reads_logits = [], why_logits(opt, get_method(opt.distill).spec)
    for teacher_opt, content in zip(options_of_teachers(opt), as_list(checkpoint), strict=True):
        net = load_teacher_net(teacher_opt.path_t, content, teacher_opt.model_t, data, reads_logits,
                               teacher_opt.teacher_head)
        if teacher_opt.teacher_head:
            add_head(teacher_opt, net, data, device)
        nets.append(net)
    return as_teacher(opt, nets)


def open_start(opt) -> Start | None:
    """The initial weights of --model or --model_s; None if it starts from random ones. opt.model_t must be set."""
    if not opt.pretrained and not opt.initial_checkpoint:
        return None
    start = distributed.broadcast(lambda: _resumed_start(opt))
    if start is None:
        start = open_published(_trained_net(opt)[1]) if opt.pretrained else _open_initial(opt)
        warn_of_split(opt, start.checkpoint, start.label)
        if is_project_checkpoint(start.checkpoint):       # others were trained on other data
            warn_of_val_fraction(opt, start.checkpoint, start.label)
    return start


def _resumed_start(opt):
    """The Start of the run that --resume continues, with a checksum but no weights: these are in the run's state.

    None without such a run, or if the file of --initial_checkpoint exists, so that its checksum can be compared.
    """
    if opt.initial_checkpoint and os.path.exists(opt.initial_checkpoint):
        return None
    state, (flag, model) = _saved_state(opt), _trained_net(opt)
    identity = state.get('identity', {})
    wanted = {flag[2:]: model, 'pretrained': opt.pretrained, 'initial_checkpoint': opt.initial_checkpoint}
    if type(identity.get(CHECKSUM)) is not int or {name: identity.get(name) for name in wanted} != wanted:
        return None
    label = f'--pretrained {model}' if opt.pretrained else f'--initial_checkpoint {opt.initial_checkpoint}'
    inputs = check_parts(state.get('inputs') or {}, label)
    if state.get('normalisation') != FROM_PRETRAINED:
        inputs = {name: value for name, value in inputs.items() if name not in ('mean', 'std')}
    return Start(label, {}, inputs, identity[CHECKSUM])


def start_inputs(opt) -> dict:
    """The preprocessing of the weights of open_start, as far as it is known without a download. Raises UserError."""
    if opt.pretrained:
        return published_inputs(_trained_net(opt)[1])
    return _open_initial(opt).inputs if opt.initial_checkpoint else {}


def _trained_net(opt):
    """(the flag of the net that a run trains, its name)."""
    return ('--model_s', opt.model_s) if 'model_s' in opt else ('--model', opt.model)


def _open_initial(opt):
    flag, model = _trained_net(opt)
    key = opt.checkpoint_key if flag == '--model' else None     # in train_student.py the flag belongs to --path-t
    return open_initial(opt.initial_checkpoint, model, flag, key)
