"""Data sets by name: get_dataloaders(opt, device) returns both loaders and what a net must know of the data."""
import functools
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from helper import distributed
from helper.cli import comma_list, readable_bytes, word_list
from helper.device import free_memory
from helper.errors import UserError, listed, nearest, reason

from . import cifar, digits, folder, huggingface, imagenet
from .augment import VIEWS, AutoAugment, BatchAugment, mixes
from .crop import CROP_PCT, DEFAULTS, RESIZED_FROM, SIZE, Pipeline
from .decode import LARGEST_SIDE, Decoded, ScaledImages, decode_squares, report_cropping
from .image import MAX_PIXELS, limit_pixels
from .memory import MemoryLoader, describe_fault
from .normalise import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, measure_mean_std
from .order import PAD
from .source import Subset, joint_checksum
from .split import divide, hold_out, stratified_indices

# name -> function of the options: ((train images, labels), (test images, labels), classes), images uint8 (N, 3, S, S)
memory_dict = {
    'cifar10': cifar.load,
    'cifar100': cifar.load,
    'digits': digits.load,
}
# name -> module with open_sources(opt): ({'train', 'test', maybe 'val'} -> dataset.source.Source, classes), and for
# --split open_whole(opt): (source, classes). The images are decoded into memory if they fit, else read while training.
source_dict = {'folder': folder, 'hf': huggingface}
LARGE = ('imagenet', 'imagenette')      # always read while training
IN_MEMORY = (*memory_dict, *source_dict)
OF_CIFAR = ('cifar10', 'cifar100', 'digits')     # normalised with CIFAR-100's mean and deviation
MOST_NAMED = 10     # classes that a message lists
MEASURED = 2000     # images on disk of which the mean and deviation of the colours are measured
LONGER_SIDE = 1.5   # of a photograph, in shorter sides, for the estimate of memory


@dataclass
class Data:
    """The loaders, each of batches (images, target, index) on the training device, and the facts of the data."""

    train_loader: Iterable
    test_loader: Iterable
    num_classes: int
    image_size: int         # pixels of the square images as the net sees them
    labels: torch.Tensor    # class of each training sample, int64 (n_train,), on the CPU
    # Returns a loader of the training images in order, without augmentation; of these indices alone if given some.
    unaugmented_loader: Callable[..., Iterable] | None = None
    test_labels: torch.Tensor | None = None     # class of each test sample, int64 (n_test,), on the CPU
    classes: tuple[str, ...] = ()               # their names
    mean: tuple[float, ...] = CIFAR_MEAN        # of the colours, for pixels from 0 to 1: both loaders normalise with it
    std: tuple[float, ...] = CIFAR_STD
    normalisation: str = "CIFAR's"       # where they are from
    crop_pct: float = 1.0       # test images are the centre of an image whose shorter side is image_size / crop_pct
    interpolation: str = 'bilinear'     # to scale images, of models.inputs.INTERPOLATIONS
    images_in: str | None = None    # 'memory' or 'disk' for data sets that can be read from both
    fit: str = 'crop'               # how oblong images become squares, of models.inputs.FITS
    test_split: str = ''            # the name of the split that is measured, if the data set has several
    split: dict | None = None       # --split, --val_fraction: 'train', 'val' or 'test' -> names of its images
    test_names: Sequence[str] = ()  # of the files of the test images, also of unreadable ones; empty if they have none
    flags: tuple[str, ...] = ()     # with which a train script reads these data, for messages
    same_classes: bool = False      # --same_classes: do not compare the class names of a checkpoint with `classes`
    checksum: int | None = None     # of all images, regardless of --val_fraction and --train_fraction
    val_loader: Iterable | None = None          # of the validation set; None without one
    val_labels: torch.Tensor | None = None      # class of each validation sample, int64 (n_val,), on the CPU

    @property
    def sizes(self) -> str:
        """The numbers of training and test images, and the split of the test images."""
        split = f' in {self.test_split}' if self.test_split else ''
        val = '' if self.val_loader is None else f'{len(self.val_labels)} validation images, '
        return f'{self.n_train} training images, {val}{len(self.test_labels)} test images{split}'

    @property
    def selection_split(self) -> str:
        """The split that is measured after each epoch and chooses the best: 'val', or 'test' without validation set."""
        return 'test' if self.val_loader is None else 'val'

    @property
    def selection_loader(self) -> Iterable:
        """The loader of that split."""
        return self.test_loader if self.val_loader is None else self.val_loader

    @property
    def selection(self) -> str:
        """Which split chooses the best epoch, as a sentence for the terminal."""
        return 'the best epoch is chosen on the test set, as in the papers, which flatters it; --val_fraction 0.1 ' \
            'chooses on held-out training images' if self.val_loader is None else \
            'the best epoch is chosen on the validation set; the test set is measured once, at the end'

    @property
    def preprocessing(self) -> str:
        """The mean and the deviation of the colours, and where they are from."""
        mean, std = (' '.join(f'{value:.4g}' for value in values) for values in (self.mean, self.std))
        return f'{self.normalisation}, mean {mean}, deviation {std}'

    @property
    def n_train(self) -> int:
        """Training samples."""
        return len(self.labels)

    def test_name(self, number: int) -> str | None:
        """The name of a test image's file, below the folder of the data; None if it is unknown."""
        return self.test_names[number] if len(self.test_names) == len(self.test_labels) else None

    @property
    def inputs(self) -> dict:
        """How a net that is trained on these data sees images; see models.inputs.Inputs."""
        return {'mean': [*self.mean], 'std': [*self.std], 'size': self.image_size,
                'interpolation': self.interpolation, 'fit': self.fit, 'crop_pct': self.crop_pct}


def dataset_key(dataset: str) -> str:
    """The key of a data set in the dictionaries above: 'hf' for all of Hugging Face, else its name."""
    return 'hf' if dataset.startswith(huggingface.PREFIX) else dataset


def check_dataset(opt) -> None:
    """Raise UserError for an unknown opt.dataset, or for a flag that does not go with it or its loader."""
    key, every = dataset_key(opt.dataset), (*memory_dict, *source_dict, *LARGE)
    if key not in every or opt.dataset == 'hf':
        known = [*memory_dict, *LARGE, 'folder', 'hf:NAME_OR_PATH']
        raise UserError(f'--dataset {opt.dataset}: no such data set; {nearest(opt.dataset, known)}')
    if opt.use_lmdb and opt.dali:
        raise UserError(f'--use-lmdb and --dali {opt.dali}: DALI reads image files itself; give one of the two')
    # flag -> (whether it is given, the data sets that it goes with, why it does not go with --dali)
    flags = {
        '--use-lmdb': (opt.use_lmdb, LARGE, ''),
        f'--dali {opt.dali}': (opt.dali, LARGE, ''),
        '--skip_bad_images': (opt.skip_bad_images, (*source_dict, *LARGE), 'DALI stops at an unreadable image'),
        f'--images_in {opt.images_in}': (opt.images_in != 'auto', source_dict, ''),
        f'--fit {opt.fit}': (opt.fit != 'crop', source_dict, ''),
        f'--crop {opt.crop}': (opt.crop, source_dict, ''),
        f'--max_pixels {opt.max_pixels}': (opt.max_pixels != MAX_PIXELS, (*source_dict, *LARGE),
                                           'DALI reads images of any size'),
        f'--split {comma_list(opt.split)}': (opt.split, source_dict, ''),
        f'--train_fraction {opt.train_fraction:g}': (opt.train_fraction < 1, IN_MEMORY, ''),
        f'--val_fraction {opt.val_fraction}': (opt.val_fraction is not None, (*IN_MEMORY, *LARGE),
                                               'DALI reads all files of a folder'),
        '--normalise measure': (opt.normalise == 'measure', IN_MEMORY, ''),
        f'--aa {opt.aa}': (opt.aa, every, 'DALI augments images itself')}
    for name, default in DEFAULTS.items():
        value = getattr(opt, name)
        flags[f'--{name} {word_list(value)}'] = value != default, every, 'DALI augments images itself'
    for flag, (is_given, names, why_not_dali) in flags.items():
        if is_given and key not in names:
            raise UserError(f'{flag}: not for --dataset {opt.dataset}; it goes with {", ".join(names)}')
        if is_given and opt.dali and why_not_dali:
            raise UserError(f'{flag}: {why_not_dali}; leave --dali {opt.dali} out')


def default_crop(opt) -> str | None:
    """--crop if it is not given; None for data sets that do not have the flag."""
    if dataset_key(opt.dataset) not in source_dict:
        return None
    return 'resized' if opt.image_size >= RESIZED_FROM else 'padded'


def get_dataloaders(opt, device: torch.device, drop_last: bool = False, views: tuple[str, ...] = ('weak',),
                    inputs: dict | None = None) -> Data:
    """Load this process's part of opt.dataset. opt.batch_size: of one process.

    drop_last: leave out a short last training batch, as --mixup and --cutmix always do. views: of augment.VIEWS, of
    each training image; with two, images are (2, B, 3, H, W). inputs: the preprocessing of a pretrained net in use, or
    of a checkpoint that is measured, with any of the keys of models.inputs.check_inputs.
    """
    check_dataset(opt)
    if not views or not set(views) <= set(VIEWS):
        raise ValueError(f'views {views}: at least one, each of {", ".join(VIEWS)}')
    if len(views) > 1 and opt.dali:
        raise UserError(f'--dali {opt.dali}: gives one view of an image, but --distill {opt.distill} trains on '
                        f'{len(views)}; leave --dali out')
    limit_pixels(opt.max_pixels)
    pipeline = _pipeline(opt, inputs or {})
    parts, classes, facts = _open(opt, device, pipeline)
    train, test, val = parts['train'], parts['test'], parts.get('val')
    if opt.patience is not None and val is None:
        raise UserError(f'--patience {opt.patience}: needs a validation set, and {opt.dataset} has none; give '
                        f'--val_fraction 0.1, or leave it out')
    # Measured on all training images, so that teacher and students see the same, whatever --train_fraction is.
    mean, std, normalisation = _normalisation(opt, train, pipeline, inputs or {})
    pipeline = replace(pipeline, mean=mean, std=std)
    facts |= {'mean': mean, 'std': std, 'normalisation': normalisation, 'fit': pipeline.fit,
              'crop_pct': pipeline.crop_pct, 'interpolation': pipeline.interpolation}
    if opt.train_fraction < 1:
        train = _select(train, stratified_indices(train.labels, opt.train_fraction))
    batch_size = opt.batch_size * distributed.world_size()
    if batch_size > len(train.labels):
        raise UserError(f'--batch_size {batch_size}: {opt.dataset} has {len(train.labels)} training images; '
                        f'give at most {len(train.labels)}')
    make_loader = functools.partial(_make_loader, opt, device, pipeline)
    training = {'drop_last': drop_last or mixes(opt), **({} if opt.dali else {'views': views})}
    data = Data(make_loader(train, train=True, **training), make_loader(test), len(classes),
                test.images.shape[-1] if isinstance(test, Decoded) else pipeline.size, train.labels,
                lambda indices=None: make_loader(train if indices is None else _select(train, indices)),
                test.labels, tuple(classes), flags=_flags_of_data(opt), same_classes=opt.same_classes, **facts)
    if val is not None:
        data.val_loader, data.val_labels = make_loader(val), val.labels
    if mixes(opt) or opt.reprob:
        data.train_loader = BatchAugment(data.train_loader, opt, data.num_classes, device)
    _report_empty_classes(opt, data)
    return data


def _flags_of_data(opt):
    given = {'--dataset': opt.dataset, '--data_dir': opt.data_dir, '--split': opt.split and comma_list(opt.split),
             '--val_fraction': opt.val_fraction}
    return tuple(str(word) for flag, value in given.items() if value is not None for word in (flag, value))


def _pipeline(opt, inputs):
    """How the images of folder, hf: and ImageNet become squares; of other data only the flips matter."""
    is_large, key = opt.dataset in LARGE, dataset_key(opt.dataset)
    crop = 'resized' if is_large or opt.crop == 'resized' else 'padded'
    is_cropped = crop == 'resized' and opt.fit == 'crop'
    is_scaled = key in source_dict or is_large and not opt.dali
    return Pipeline(SIZE if is_large else opt.image_size, fit=opt.fit, crop=crop,
                    crop_pct=inputs.get('crop_pct', CROP_PCT) if is_cropped else 1.0,
                    interpolation=inputs.get('interpolation', 'bilinear') if is_scaled else 'bilinear',
                    **{name: getattr(opt, name) for name in DEFAULTS})


def _open(opt, device, pipeline):
    """(parts, class names, fields of Data). parts: 'train', 'test' and maybe 'val' -> images in memory, or a
    source that is read later."""
    if opt.dataset in memory_dict:
        train, test, classes = _load(opt)
        checksum = joint_checksum(*(zlib.crc32(split.images.contiguous().numpy()) for split in (train, test)))
        parts = {'train': train, 'test': test}
        if opt.val_fraction is not None:
            parts = _with_held_out(opt, parts, range(len(train.labels)), classes)
        return parts, classes, {'checksum': checksum}
    module = source_dict.get(dataset_key(opt.dataset), imagenet)
    if opt.split:
        source, classes = module.open_whole(opt)
        parts = {part: Subset(source, members)
                 for part, members in divide(source.labels, source.names, opt.split).items()}
        facts = {'test_split': f'--split {comma_list(opt.split)}', 'checksum': source.checksum()}
    else:
        parts, classes = module.open_sources(opt)
        facts = {'test_split': parts['test'].name,
                 'checksum': joint_checksum(*(source.checksum() for source in parts.values()))}
    facts['test_names'] = parts['test'].names
    if opt.val_fraction is not None:
        parts = _with_held_out(opt, parts, parts['train'].names, classes)
    if not all(len(source.labels) for source in parts.values()):        # --split divides classes of few images
        raise UserError(f'--split {comma_list(opt.split)}: leaves no validation image; give two shares, or add images')
    if module is not imagenet:
        if opt.split or opt.val_fraction is not None:
            facts['split'] = {part: [*source.names] for part, source in parts.items()}
        if opt.fit == 'crop' and distributed.is_main():
            report_cropping(parts['train'], pipeline)
        n_train = len(parts['train'].labels)
        n_others = sum(len(source.labels) for source in parts.values()) - n_train
        facts['images_in'] = _choose_storage(opt, n_train, n_others, pipeline, device)
        if facts['images_in'] == 'memory':
            decode = dict.fromkeys(parts, decode_squares)
            decode['train'] = decode_squares if pipeline.crop == 'padded' else ScaledImages
            parts = {part: decode[part](source, opt, pipeline) for part, source in parts.items()}
    return parts, classes, facts


def _with_held_out(opt, parts, names, classes):
    """The parts with 'val', the images of --val_fraction, which are taken from 'train'. names: of the training images.
    """
    if 'val' in parts:
        source = f'--split {comma_list(opt.split)} holds out' if opt.split else \
            f'{parts["val"].name} beside train and {parts["test"].name} has'
        raise UserError(f'--val_fraction {opt.val_fraction:g}: {source} validation images already; leave it out')
    train = parts['train']
    held_out = hold_out(train.labels, names, opt.val_fraction, classes)
    return {**parts, **{part: _select(train, indices) for part, indices in held_out.items()}}


def _load(opt):
    """(train, test, class names) from the function of opt.dataset. Raises UserError that names the data set."""
    function = f'--dataset {opt.dataset}: its function in memory_dict'
    try:
        loaded = memory_dict[opt.dataset](opt)
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:      # of a user's code
        raise UserError(f'{function} fails with {type(error).__name__} ({reason(error)}); --debug shows where'
                        ) from error
    if fault := describe_fault(loaded):
        raise UserError(f'{function} returns {fault}; wanted are (train images, labels), (test images, labels), '
                        f'classes: images uint8 (N, 3, S, S) and labels int64 (N,) as torch tensors on the CPU, '
                        f'classes a list of their names')
    train, test, classes = loaded
    return Decoded(*train), Decoded(*test), classes


def _choose_storage(opt, n_train, n_test, pipeline, device):
    """--images_in: 'memory' or 'disk'; with auto, disk if all images would take over half of the free memory."""
    if opt.images_in != 'auto':
        return opt.images_in
    square = (pipeline.size + 2 * PAD) ** 2
    pixels = square if pipeline.crop == 'padded' else LONGER_SIDE * (LARGEST_SIDE * pipeline.size) ** 2
    size = 3 * (n_train * pixels + n_test * square) * distributed.world_size()
    free = min(distributed.gather(free_memory(device)))
    if size <= free / 2:
        return 'memory'
    print(f'--dataset {opt.dataset}: the images would take {readable_bytes(size)} of {readable_bytes(free)} free, so '
          f'they are read from disk while training')
    return 'disk'


def _select(images, indices):
    """The images of these indices, in memory or on disk as before."""
    if isinstance(images, Decoded):
        return Decoded(images.images[indices], images.labels[indices])
    return Subset(images, [int(i) for i in indices])


def _normalisation(opt, train, pipeline, inputs):
    """(mean and standard deviation of the colours, where they are from)."""
    if opt.normalise is None and {'mean', 'std'} <= inputs.keys():
        return tuple(inputs['mean']), tuple(inputs['std']), "the pretrained net's"
    is_decoded = isinstance(train, Decoded)
    size = train.images.shape[-1] if is_decoded else pipeline.size
    if opt.normalise == 'usual' and opt.dataset not in LARGE or opt.normalise is None and opt.dataset in OF_CIFAR:
        return CIFAR_MEAN, CIFAR_STD, "CIFAR's"
    if opt.normalise != 'measure' and size >= RESIZED_FROM:
        return IMAGENET_MEAN, IMAGENET_STD, "ImageNet's"
    if not is_decoded:
        source = train.source if isinstance(train, ScaledImages) else train
        n = len(source.labels)
        train = decode_squares(Subset(source, range(0, n, -(-n // MEASURED))), opt, pipeline)
    return *measure_mean_std(train.images), 'measured'


def _make_loader(opt, device, pipeline, images, **settings):
    """The loader of a split in memory or on disk. settings: train and drop_last, and without --dali also views."""
    settings |= {'rank': distributed.rank(), 'world_size': distributed.world_size()}
    if isinstance(images, Decoded):
        aa = AutoAugment(opt.aa, images.images.shape[-1], pipeline.mean) if opt.aa else None
        return MemoryLoader(*images, opt.batch_size, device, seed=opt.seed, channels_last=opt.channels_last, aa=aa,
                            mean=pipeline.mean, std=pipeline.std, hflip=opt.hflip, vflip=opt.vflip, **settings)
    if opt.dali:
        from .imagenet_dali import DaliLoader as Loader
    else:
        Loader = imagenet.WorkerLoader
    return Loader(images, opt=opt, device=device, pipeline=pipeline, **settings)


def _report_empty_classes(opt, data):
    parts = {'training': (data.labels, 'no net can learn it'),
             'validation': (data.val_labels, 'the validation does not cover it'),
             'test': (data.test_labels, 'the accuracy does not cover it')}
    for images, (labels, effect) in parts.items():
        if labels is None:
            continue
        counts = torch.bincount(labels, minlength=data.num_classes)
        empty = [name for name, count in zip(data.classes, counts.tolist(), strict=True) if not count]
        if empty:
            print(f'--dataset {opt.dataset}: no {images} image of the class {listed(empty, MOST_NAMED)}: {effect}')
