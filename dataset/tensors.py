"""Data sets that are tensors: call their function in memory_dict, and check what it returns."""
import torch

from helper.errors import UserError, counted, reason

from .decode import Decoded
from .registry import memory_dict


def load_tensors(opt):
    """(train, test, class names) from the function of opt.dataset. Raises UserError that names the data set."""
    function = f'--dataset {opt.dataset}: its function in memory_dict'
    try:
        loaded = memory_dict[opt.dataset](opt)
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:      # of a user's code
        raise UserError(f'{function} fails with {type(error).__name__} ({reason(error)}); --debug shows where'
                        ) from error
    if fault := _find_fault(loaded):
        raise UserError(f'{function} returns {fault}; wanted are (train images, labels), (test images, labels), '
                        f'classes: images uint8 (N, 3, S, S) and labels int64 (N,) as torch tensors on the CPU, '
                        f'classes a list of their names')
    train, test, classes = loaded
    return Decoded(*train), Decoded(*test), classes


def _find_fault(loaded) -> str:
    """Why the value that a function of memory_dict returned cannot be used; '' if it can."""
    if not isinstance(loaded, (tuple, list)) or len(loaded) != 3:
        return f'{_kind(loaded)} instead of three values'
    *splits, classes = loaded
    if not isinstance(classes, (tuple, list)) or not classes or not all(isinstance(name, str) for name in classes):
        return f'{_kind(classes)} as classes'
    if len({*classes}) < len(classes):
        return 'a name of a class twice'
    for which, split in zip(('train', 'test'), splits, strict=True):
        if not isinstance(split, (tuple, list)) or len(split) != 2:
            return f'{_kind(split)} instead of ({which} images, labels)'
        for part, value, dtype in (('images', split[0], torch.uint8), ('labels', split[1], torch.int64)):
            if not isinstance(value, torch.Tensor) or value.dtype != dtype or value.device.type != 'cpu':
                return f'{which} {part} that are {_kind(value)}'
        images, labels = split
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or not len(images):
            return f'{which} images of shape {tuple(images.shape)}'
        if labels.shape != (len(images),):
            return f'{which} labels of shape {tuple(labels.shape)} for {counted(len(images), "image")}'
        low, high = labels.min().item(), labels.max().item()
        if low < 0 or high >= len(classes):
            return f'{which} labels from {low} to {high} for {counted(len(classes), "class")}, which count from 0'
    if splits[0][0].shape[2:] != splits[1][0].shape[2:]:
        return f'train images of {splits[0][0].shape[2]} and test images of {splits[1][0].shape[2]} pixels'
    return ''


def _kind(value):
    """The kind of a value, as text: 'a numpy.ndarray', 'the number 10', 'a tensor of float32', 'a tuple of 2'."""
    if isinstance(value, torch.Tensor):
        return f'a tensor of {str(value.dtype).removeprefix("torch.")} on {value.device}'
    if isinstance(value, (int, float)):
        return f'the number {value}'
    if isinstance(value, (tuple, list)):
        kinds = ', '.join(sorted({type(item).__name__ for item in value})) or 'nothing'
        return f'a {type(value).__name__} of {len(value)} ({kinds})'
    module = type(value).__module__
    return f'a {"" if module == "builtins" else f"{module}."}{type(value).__name__}'
