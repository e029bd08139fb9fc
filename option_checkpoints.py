"""What a checkpoint changes in the options: the teacher's, the initial weights, or the one that --evaluate measures."""
from dataset import dataset_key, default_crop, source_dict
from helper.checkpoint import is_ours
from helper.cli import comma_list
from helper.errors import UserError
from models.inputs import check_parts
from models.load import open_net
from models.start import Start, open_initial, open_published, published_size
from option_checks import check_crop

LARGEST = 512       # of --image_size


def follows_checkpoint_size(opt) -> bool:
    """Whether opt.image_size is that of the checkpoint in use, if there is one: data of any size, no --image_size."""
    return 'image_size' not in opt.flags.given and dataset_key(opt.dataset) in source_dict


def settle_crop(opt) -> None:
    """Set opt.crop by opt.image_size, unless --crop is given. Raises UserError for flags that do not suit it."""
    if 'crop' not in opt.flags.given:
        opt.crop = default_crop(opt)
    check_crop(opt)


def take_image_size(opt, checkpoint: dict, label: str) -> None:
    """Set opt.image_size to the size in a checkpoint of models.load.open_net, if it follows_checkpoint_size, and then
    opt.crop. label: start of the printed line."""
    inputs = checkpoint.get('inputs')
    size = inputs.get('size') if isinstance(inputs, dict) else None
    if follows_checkpoint_size(opt) and type(size) is int and size != opt.image_size:
        if not 8 <= size <= LARGEST:
            raise UserError(f'{label}: its net takes images of {size} pixels; give --image_size, from 8 to {LARGEST}')
        print(f'{label}: its net takes images of {size} pixels, so --image_size is {size}')
        opt.image_size = size
    settle_crop(opt)


def take_preprocessing(opt, checkpoint: dict, label: str) -> dict:
    """The preprocessing in a checkpoint that is measured, for get_dataloaders; empty if it has none.

    Sets opt.image_size, opt.fit and opt.crop to those of the checkpoint, unless they are given.
    """
    take_image_size(opt, checkpoint, label)
    if not isinstance(checkpoint.get('inputs'), dict):
        return {}
    inputs = check_parts(checkpoint['inputs'], label)
    if dataset_key(opt.dataset) in source_dict:
        if 'fit' in inputs and 'fit' not in opt.flags.given:
            opt.fit = inputs['fit']
        crop_pct = inputs.get('crop_pct', 1.0 if is_ours(checkpoint) else None)
        if crop_pct is not None and 'crop' not in opt.flags.given:
            opt.crop = 'resized' if crop_pct < 1 else 'padded'
    return inputs


def warn_of_split(opt, checkpoint: dict, label: str) -> None:
    """Print a line if the net of a checkpoint was trained with a --split that differs from this run's."""
    split = checkpoint.get('split')
    if isinstance(split, list) and split != opt.split:
        print(f'{label}: its net was trained with --split {comma_list(split)}, so the test images of this run may be '
              f'among its training images, and its accuracy on them too high')


def warn_of_val_fraction(opt, checkpoint: dict, label: str) -> None:
    """Print a line if a net may have been trained on the images that this run holds out by --val_fraction."""
    fraction = checkpoint.get('val_fraction')
    fraction = fraction if isinstance(fraction, float) else 0.0
    if opt.val_fraction is not None and fraction < opt.val_fraction:        # a larger part contains a smaller one
        trained = f'with --val_fraction {fraction:g}' if fraction else 'without --val_fraction'
        print(f'{label}: its net was trained {trained}, so the validation images of this run may be among its training '
              f'images, and its accuracy on them too high')


def open_teacher(opt, start: Start | None = None) -> tuple[str, dict]:
    """(the name of the teacher's net, its checkpoint); see models.load.open_net, and take_image_size for its size.

    start: that of the student, whose image size is kept if it is known.
    """
    given = {name: value for name in ('mean', 'std', 'size', 'interpolation')
             if (value := getattr(opt, f'{name}_t')) is not None}
    name, checkpoint = open_net(opt.path_t, opt.model_t, key=opt.checkpoint_key, inputs=given)
    if start is None or not start.size:
        take_image_size(opt, checkpoint, f'--path-t {opt.path_t}')
    warn_of_split(opt, checkpoint, f'--path-t {opt.path_t}')
    if not opt.evaluate:        # which measures the test set
        warn_of_val_fraction(opt, checkpoint, f'--path-t {opt.path_t}')
    return name, checkpoint


def open_start(opt) -> Start | None:
    """The weights from which --model, or --model_s, starts; None: from new ones. May set opt.image_size."""
    if not opt.pretrained and not opt.initial_checkpoint:
        return None
    start = open_published(_trained_net(opt)[1]) if opt.pretrained else _open_initial(opt)
    if start.size or 'path_t' not in opt:
        take_image_size(opt, start.checkpoint, start.label)
    warn_of_split(opt, start.checkpoint, start.label)
    if is_ours(start.checkpoint):       # else it was trained on other data
        warn_of_val_fraction(opt, start.checkpoint, start.label)
    return start


def start_size(opt) -> int | None:
    """The image size of the weights of open_start, if it is known; downloads nothing. Raises UserError."""
    if opt.pretrained:
        return published_size(_trained_net(opt)[1])
    return _open_initial(opt).size if opt.initial_checkpoint else None


def _trained_net(opt):
    """(the flag of the net that a run trains, its name)."""
    return ('--model_s', opt.model_s) if 'model_s' in opt else ('--model', opt.model)


def _open_initial(opt):
    flag, model = _trained_net(opt)
    key = opt.checkpoint_key if flag == '--model' else None     # in train_student.py it is that of --path-t
    return open_initial(opt.initial_checkpoint, model, flag, key)
