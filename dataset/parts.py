"""The parts of a data set: training, test and maybe validation images, in memory or to be read while training."""
import zlib

from helper import distributed
from helper.cli import comma_list, readable_bytes
from helper.device import free_memory
from helper.errors import UserError

from . import imagenet
from .crop import Pipeline
from .decode import LARGEST_SIDE, Decoded, ScaledImages, decode_squares, report_cropping
from .order import PAD
from .registry import dataset_key, memory_dict, source_dict
from .source import Subset, joint_checksum
from .split import divide, hold_out
from .tensors import load_tensors

LONGER_SIDE = 1.5   # of a photograph, in shorter sides, for the estimate of memory


def open_parts(opt, device, pipeline: Pipeline) -> tuple[dict, list[str], dict]:
    """(parts, class names, fields of dataset.Data) of opt.dataset. Raises UserError.

    parts: 'train', 'test' and maybe 'val' -> decode.Decoded or decode.ScaledImages in memory, or a source of images
    that are read while training.
    """
    parts, classes, fields = _open_tensors(opt) if opt.dataset in memory_dict else _open_sources(opt)
    if opt.patience is not None and 'val' not in parts:
        raise UserError(f'--patience {opt.patience}: needs a validation set, and {opt.dataset} has none; give '
                        f'--val_fraction 0.1, or leave --patience out')
    if opt.no_test and 'val' not in parts:
        raise UserError(f'--no_test: needs a validation set, and {opt.dataset} has none; give --val_fraction 0.1, or '
                        f'leave --no_test out')
    if dataset_key(opt.dataset) in source_dict:
        if opt.split or opt.val_fraction is not None:
            fields['split'] = {part: [*source.names] for part, source in parts.items()}
        if opt.fit == 'crop' and distributed.is_main():
            report_cropping(parts['train'], pipeline)
        fields['images_in'] = _choose_storage(opt, parts, pipeline, device)
        if fields['images_in'] == 'memory':
            parts = _decode(opt, parts, pipeline)
    return parts, classes, fields


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
    parts = _hold_out(opt, parts, parts['train'].names, classes)
    if not all(len(source.labels) for source in parts.values()):        # --split divides classes of few images
        raise UserError(f'--split {comma_list(opt.split)}: leaves no validation image; give two shares, or add images')
    return parts, classes, fields


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
    n_train = len(parts['train'].labels)
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
    decode = dict.fromkeys(parts, decode_squares)
    if pipeline.crop == 'resized':
        decode['train'] = ScaledImages
    return {part: decode[part](source, opt, pipeline) for part, source in parts.items()}
