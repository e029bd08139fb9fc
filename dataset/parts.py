"""The parts of a data set: training, test and maybe validation images, in memory or to be read while training."""
import zlib
from dataclasses import replace

from helper import distributed
from helper.cli import comma_list, has_auto, readable_bytes
from helper.device import free_memory
from helper.errors import UserError

from . import imagenet
from .crop import Pipeline
from .decode import LARGEST_SIDE, Decoded, ScaledImages, decode_squares, report_cropping
from .order import PAD
from .registry import LARGE, dataset_key, memory_dict, source_dict
from .source import Subset, joint_checksum
from .split import divide, hold_out
from .tensors import load_tensors
from .unlabelled import open_unlabelled, report_shared_images

TRAINING = ('train', 'unlabelled')      # parts whose images are augmented
LONGER_SIDE = 1.5   # of a photograph, in shorter sides, for the estimate of memory


def open_parts(opt, device, pipeline: Pipeline) -> tuple[dict, list[str], dict]:
    """(parts, class names, fields of dataset.Data) of opt.dataset. Raises UserError.

    parts: 'train', 'test' and maybe 'val' and 'unlabelled' -> decode.Decoded or decode.ScaledImages in memory, or a
    source of images that are read while training. With --unlabelled, 'train' may be missing.
    """
    parts, classes, fields = _open_tensors(opt) if opt.dataset in memory_dict else _open_sources(opt)
    pipeline = fit_pipeline(pipeline, parts['test'])
    flags = {f'--patience {opt.patience}': opt.patience is not None, '--no_test': opt.no_test}
    if 'val' not in parts and (given := [flag for flag, is_given in flags.items() if is_given]):
        advice = 'give --val_fraction 0.1' if 'train' in parts else f'add images as {opt.data_dir}/val/CLASS/*'
        raise UserError(f'{given[0]}: needs a validation set, and {opt.dataset} has none; {advice}, or leave it out')
    if dataset_key(opt.dataset) in source_dict and (opt.split or opt.val_fraction is not None):
        fields['split'] = {part: [*source.names] for part, source in parts.items()}
    if getattr(opt, 'unlabelled', None):
        if 'unlabelled' not in parts:
            parts['unlabelled'] = open_unlabelled(opt)
            report_shared_images(opt, parts)
        fields |= {'n_unlabelled': len(parts['unlabelled'].labels),
                   'unlabelled_checksum': parts['unlabelled'].checksum()}
    sources = {part: images for part, images in parts.items() if not isinstance(images, Decoded)}
    if sources and opt.dataset not in LARGE:
        if opt.fit == 'crop' and distributed.is_main():
            report_cropping(sources.get('train') or sources['unlabelled'], pipeline)
        fields['images_in'] = _choose_storage(opt, sources, pipeline, device)
        if fields['images_in'] == 'memory':
            unused = ('test',) if opt.no_test else ()
            parts |= _decode(opt, {part: sources[part] for part in sources if part not in unused}, pipeline)
    return parts, classes, fields


def fit_pipeline(pipeline: Pipeline, test) -> Pipeline:
    """The pipeline for images of the size of decoded test images; CIFAR and digits have a size of their own."""
    return replace(pipeline, size=test.images.shape[-1]) if isinstance(test, Decoded) else pipeline


def has_validation_set(opt) -> bool:
    """Whether runs with these options have a validation set. Reads no image. Raises UserError, see open_parts."""
    if opt.val_fraction is not None or (opt.split and len(opt.split) == 3):
        return True
    if opt.split or opt.dataset in memory_dict:
        return False
    return 'val' in source_dict.get(dataset_key(opt.dataset), imagenet).open_sources(opt)[0]


def select(images, indices):
    """The images of these indices, in memory or on disk as before."""
    if isinstance(images, Decoded):
        return Decoded(images.images[indices], images.labels[indices])
    return Subset(images, [int(i) for i in indices])


def _open_tensors(opt):
    """As open_parts, for a data set of memory_dict."""
    train, test, classes = load_tensors(opt)
    checksum = joint_checksum(*(zlib.crc32(split.images.contiguous().numpy()) for split in (train, test)))
    parts = _hold_out(opt, {'train': train, 'test': test}, range(len(train.labels)), classes)
    return parts, classes, {'checksum': checksum}


def _open_sources(opt):
    """As open_parts, for image files, which are not read yet."""
    module = source_dict.get(dataset_key(opt.dataset), imagenet)
    if opt.split:
        source, classes = module.open_whole(opt)
        division = divide(source.labels, source.names, opt.split)
        parts = {part: Subset(source, indices) for part, indices in division.items()}
        test_split, checksum = f'--split {comma_list(opt.split)}', source.checksum()
    else:
        parts, classes = module.open_sources(opt)
        test_split = parts['test'].name
        checksum = joint_checksum(*(source.checksum() for source in parts.values()))
    fields = {'test_split': test_split, 'checksum': checksum, 'test_names': parts['test'].names}
    if 'train' in parts:
        parts = _hold_out(opt, parts, parts['train'].names, classes)
    else:
        _check_without_labels(opt)
    if not all(len(source.labels) for source in parts.values()):        # --split divides classes of few images
        raise UserError(f'--split {comma_list(opt.split)}: leaves no validation image; give two shares, or add images')
    return parts, classes, fields


def _check_without_labels(opt) -> None:
    """Refuse flags that need labelled training images, where no training image has a label."""
    flags = {f'-r {opt.gamma:g}': opt.gamma, f'-b {comma_list(opt.beta)}': has_auto(opt.beta),
             f'--val_fraction {opt.val_fraction}': opt.val_fraction is not None,
             f'--train_fraction {opt.train_fraction:g}': opt.train_fraction < 1,
             '--balance_classes': opt.balance_classes, f'--teacher_head {opt.teacher_head}': opt.teacher_head}
    if given := [flag for flag, is_given in flags.items() if is_given]:
        raise UserError(f'{given[0]}: needs training images with labels, and --data_dir {opt.data_dir} has no folder '
                        f'train; ' + ('give -r 0' if opt.gamma else 'leave it out'))


def _hold_out(opt, parts, names, classes):
    """The parts, with --val_fraction also 'val', whose images are taken from 'train'. names: of the training images."""
    if opt.val_fraction is None:
        return parts
    if 'val' in parts:
        source = f'--split {comma_list(opt.split)} holds out' if opt.split else \
            f'{parts["val"].name} beside train and {parts["test"].name} has'
        raise UserError(f'--val_fraction {opt.val_fraction:g}: {source} validation images already; leave it out')
    train = parts['train']
    division = hold_out(train.labels, names, opt.val_fraction, classes)
    return {**parts, **{part: select(train, indices) for part, indices in division.items()}}


def _choose_storage(opt, parts, pipeline, device):
    """--images_in: 'memory' or 'disk'; with auto, disk if all images would take over half of the free memory."""
    if opt.images_in != 'auto':
        return opt.images_in
    n_train = sum(len(parts[part].labels) for part in TRAINING if part in parts)
    n_others = sum(len(source.labels) for source in parts.values()) - n_train
    square = (pipeline.size + 2 * PAD) ** 2
    pixels = square if pipeline.crop == 'padded' else LONGER_SIDE * (LARGEST_SIDE * pipeline.size) ** 2
    size = 3 * (n_train * pixels + n_others * square) * distributed.world_size()
    free = min(distributed.gather(free_memory(device)))
    if size <= free / 2:
        return 'memory'
    print(f'--dataset {opt.dataset}: the images would take {readable_bytes(size)} of {readable_bytes(free)} free, so '
          f'they are read from disk while training')
    return 'disk'


def _decode(opt, parts, pipeline):
    """The parts in memory: squares, but for training crops of random size the whole images."""
    whole = TRAINING if pipeline.crop == 'resized' else ()
    return {part: (ScaledImages if part in whole else decode_squares)(source, opt, pipeline)
            for part, source in parts.items()}
