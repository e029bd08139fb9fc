"""Data sets by name: get_dataloaders(opt, device) returns both loaders and what a net must know of the data."""
import copy
import functools
from dataclasses import replace

import torch

from helper import distributed
from helper.cli import comma_list
from helper.errors import UserError, counted, listed, printable

from .augment import VIEWS, AutoAugment, BatchAugment, mixes
from .crop import CROP_PCT, DEFAULTS, INTERPOLATION, RESIZED_FROM, SIZE, Pipeline
from .data import Data
from .decode import Decoded, ScaledImages, decode_squares
from .image import limit_pixels
from .memory import MemoryLoader
from .normalise import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, measure_mean_std
from .order import AccompanyingOrder, Repetition
from .parts import fit_pipeline, open_parts, select
from .registry import (
    LARGE,
    WITHOUT_CLASSES,
    check_dataset,
    dataset_key,
    default_crop,
    memory_dict,
    source_dict,
)
from .source import Subset, sample_indices
from .split import stratified_indices
from .unlabelled import WithoutLabels, WithUnlabelled
from .worker_loader import WorkerLoader

__all__ = ['LARGE', 'WITHOUT_CLASSES', 'Data', 'check_dataset', 'dataset_key', 'default_crop',
           'get_dataloaders', 'make_pipeline', 'memory_dict', 'source_dict']
FROM_PRETRAINED = "the pretrained net's"        # value of Data.normalisation
CIFAR_LIKE = ('cifar10', 'cifar100', 'digits')     # normalised with CIFAR-100's mean and deviation
MOST_NAMED = 10     # classes that a message lists
MEASURED = 2000     # images on disk that are read to measure the mean and standard deviation of the colours


def get_dataloaders(opt, device: torch.device, drop_last: bool = False, views: tuple[str, ...] = ('weak',),
                    inputs: dict | None = None, labelled: bool = True) -> Data:
    """Load this process's part of opt.dataset. opt.batch_size: of one process.

    drop_last: leave out a short last training batch, as --mixup and --cutmix always do. views: of augment.VIEWS, of
    each training image; with two, images are (2, B, 3, H, W). inputs: the preprocessing of a pretrained net in use, or
    of a checkpoint that is measured, with any of the keys of models.inputs.check_inputs. labelled: False leaves the
    labels out, and there may be no classes; num_classes is at least 1, so that nets can be built.
    """
    check_dataset(opt)
    _check_views(opt, views)
    limit_pixels(opt.max_pixels)
    inputs = inputs or {}
    pipeline = make_pipeline(opt, inputs)
    parts, classes, fields = open_parts(opt, device, pipeline)
    if labelled and len(classes) < 2:
        raise UserError(f'--dataset {opt.dataset}: has the class {printable(classes[0])} alone; a classifier needs two '
                        f'or more')
    pipeline = fit_pipeline(pipeline, parts['test'])
    # Measured before --train_fraction, so that teacher and students have the same normalisation.
    train, test, val = parts.get('train'), parts['test'], parts.get('val') if labelled else None
    mean, std, normalisation = _normalisation(opt, train or parts['unlabelled'], pipeline, inputs)
    pipeline = replace(pipeline, mean=mean, std=std)
    if opt.train_fraction < 1:
        train = select(train, stratified_indices(train.labels, opt.train_fraction))
    images = train or parts['unlabelled']
    make_loader = functools.partial(_make_loader, opt=opt, device=device, pipeline=pipeline)
    training = {'train': True, 'drop_last': drop_last or mixes(opt), **({} if opt.dali else {'views': views})}
    data = Data(
        train_loader=_make_train_loader(make_loader, opt, train, parts.get('unlabelled'), training),
        test_loader=make_loader(test), val_loader=None if val is None else make_loader(val),
        unaugmented_loader=lambda indices=None: make_loader(images if indices is None else select(images, indices)),
        labels=torch.empty(0, dtype=torch.int64) if train is None else train.labels, test_labels=test.labels,
        val_labels=None if val is None else val.labels,
        num_classes=len(classes) or 1, classes=tuple(classes), same_classes=opt.same_classes, flags=_flags_of_data(opt),
        image_size=pipeline.size, mean=mean, std=std, normalisation=normalisation, fit=pipeline.fit,
        crop_pct=pipeline.crop_pct, interpolation=pipeline.interpolation, has_labels=labelled, **fields)
    if not labelled:
        data.n_unlabelled += data.n_train
        data.labels, data.train_loader = data.labels[:0], WithoutLabels(data.train_loader)
    if mixes(opt) or opt.reprob:
        data.train_loader = BatchAugment(data.train_loader, opt, data.num_classes, device)
    if labelled:
        _report_empty_classes(opt, data)
    return data


def _check_views(opt, views):
    if not views or not set(views) <= set(VIEWS):
        raise ValueError(f'views {views}: at least one, each of {", ".join(VIEWS)}')
    if len(views) > 1 and opt.dali:
        raise UserError(f'--dali {opt.dali}: gives one view of an image, but --distill {opt.distill} trains on '
                        f'{len(views)}; leave --dali out')


def _make_train_loader(make_loader, opt, train, unlabelled, settings):
    """The loader of labelled images, of --unlabelled, or of both. train, unlabelled: None if there are none."""
    if train is not None and not getattr(opt, 'evaluate', None):
        _check_batch_size('--batch_size', opt.batch_size, opt.dataset, len(train.labels), 'training image')
    if unlabelled is None:
        return make_loader(train, **settings)
    _check_batch_size('--unlabelled_batch', opt.unlabelled_batch, f'--unlabelled {opt.unlabelled}',
                      len(unlabelled.labels), 'image')
    beside = copy.copy(opt)
    beside.batch_size = opt.unlabelled_batch
    if train is None:
        return WithoutLabels(make_loader(unlabelled, opt=beside, **settings))
    main = copy.copy(opt)
    main.num_workers = beside.num_workers = -(-opt.num_workers // 2)        # of each loader
    loader = make_loader(train, opt=main, **settings)
    make_order = functools.partial(AccompanyingOrder, main=loader.order)
    return WithUnlabelled(loader, make_loader(unlabelled, opt=beside, make_order=make_order, **settings))


def _check_batch_size(flag, batch_size, source, n_images, noun):
    batch_size *= distributed.world_size()
    if batch_size > n_images:
        raise UserError(f'{flag} {batch_size}: {source} has {counted(n_images, noun)}; give at most {n_images}')


def _flags_of_data(opt):
    given = {'--dataset': opt.dataset, '--data_dir': opt.data_dir, '--split': opt.split and comma_list(opt.split),
             '--val_fraction': opt.val_fraction}
    return tuple(str(word) for flag, value in given.items() if value is not None for word in (flag, value))


def make_pipeline(opt, inputs: dict) -> Pipeline:
    """The Pipeline of these options. Data sets that are tensors use only its flips and its normalisation.

    inputs: as in get_dataloaders; --interpolation and --crop_pct override it.
    """
    given = {name: value for name in ('interpolation', 'crop_pct') if (value := getattr(opt, name)) is not None}
    inputs = {'interpolation': INTERPOLATION, 'crop_pct': CROP_PCT, **inputs, **given}
    is_large = opt.dataset in LARGE
    crop = 'resized' if is_large or opt.crop == 'resized' else 'padded'
    is_cropped = crop == 'resized' and opt.fit == 'crop'
    is_scaled = dataset_key(opt.dataset) in source_dict or is_large and not opt.dali
    return Pipeline(SIZE if is_large else opt.image_size, fit=opt.fit, crop=crop,
                    crop_pct=inputs['crop_pct'] if is_cropped else 1.0,
                    interpolation=inputs['interpolation'] if is_scaled else INTERPOLATION,
                    **{name: getattr(opt, name) for name in DEFAULTS})


def _normalisation(opt, train, pipeline, inputs):
    """(mean and standard deviation of the colours, where they are from)."""
    if opt.normalise is None and {'mean', 'std'} <= inputs.keys():
        return tuple(inputs['mean']), tuple(inputs['std']), FROM_PRETRAINED
    if opt.normalise == 'usual' and opt.dataset not in LARGE or opt.normalise is None and opt.dataset in CIFAR_LIKE:
        return CIFAR_MEAN, CIFAR_STD, "CIFAR's"
    if opt.normalise != 'measure' and pipeline.size >= RESIZED_FROM:
        return IMAGENET_MEAN, IMAGENET_STD, "ImageNet's"
    if not isinstance(train, Decoded):
        source = train.source if isinstance(train, ScaledImages) else train
        train = decode_squares(Subset(source, sample_indices(source, MEASURED)), opt, pipeline)
    return *measure_mean_std(train.images), 'measured'


def _make_loader(images, opt, device, pipeline, **settings):
    """The loader of a split in memory or on disk. settings: train and drop_last, and without --dali also views."""
    settings |= {'rank': distributed.rank(), 'world_size': distributed.world_size()}
    if settings.get('train') and getattr(opt, 'cache_epochs', None):
        settings['repetition'] = Repetition(opt.cache_epochs, opt.cache_seed, bool(mixes(opt) or opt.reprob))
    if isinstance(images, Decoded):
        aa = AutoAugment(opt.aa, images.images.shape[-1], pipeline.mean) if opt.aa else None
        return MemoryLoader(*images, opt.batch_size, device, seed=opt.seed, channels_last=opt.channels_last, aa=aa,
                            mean=pipeline.mean, std=pipeline.std, hflip=opt.hflip, vflip=opt.vflip, **settings)
    if opt.dali:
        from .imagenet_dali import DaliLoader as Loader
    else:
        Loader = WorkerLoader
    return Loader(images, opt=opt, device=device, pipeline=pipeline, **settings)


def _report_empty_classes(opt, data):
    parts = {'training': (data.labels, 'no net can learn it'),
             'validation': (data.val_labels, 'the validation does not cover it'),
             'test': (data.test_labels, 'the accuracy does not cover it')}
    for images, (labels, effect) in parts.items():
        if labels is None or not len(labels):
            continue
        counts = torch.bincount(labels, minlength=data.num_classes)
        empty = [name for name, count in zip(data.classes, counts.tolist(), strict=True) if not count]
        if empty:
            print(f'--dataset {opt.dataset}: no {images} image of the class {listed(empty, MOST_NAMED)}: {effect}')
