"""Data sets by their name: get_dataloaders(opt, device) gives both loaders and what a net needs to know of the data."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from helper import distributed
from helper.cli import comma_list, readable_bytes
from helper.device import free_memory
from helper.errors import UserError, listed, nearest, reason

from . import cifar, digits, folder, huggingface, imagenet, memory
from .augment import VIEWS, AutoAugment
from .batch_augment import BatchAugment, mixes
from .fraction import chosen, part
from .identity import joint_checksum, tensor_checksum
from .image import MAX_PIXELS, limit_pixels
from .memory import MemoryLoader
from .normalise import measured
from .order import PAD
from .split import divide

# name -> function of the options: ((train images, labels), (test images, labels), classes), images uint8 (N, 3, H, W)
memory_dict = {
    'cifar10': cifar.load_cifar10,
    'cifar100': cifar.load_cifar100,
    'digits': digits.load,
}
# name -> module with open_sources(opt): (train source, test source, classes), and for --split open_whole(opt): (source,
# classes). A source has `labels` int64 (N,), `names`, checksum(), and read(i), which returns image i as RGB. Images are
# decoded into memory if they fit, else read while training.
source_dict = {'folder': folder, 'hf': huggingface}
LARGE = ('imagenet', 'imagenette')      # read while training
IN_MEMORY = (*memory_dict, *source_dict)
MOST_NAMED = 10     # classes that a line names
MEASURED = 2000     # images of those that are read while training, for --normalise measure


@dataclass
class Data:
    """The two loaders, each giving (images, target, index) on the training device, and the facts of the data."""

    train_loader: Iterable
    test_loader: Iterable
    num_classes: int
    image_size: int         # pixels, of the square images as the net sees them
    labels: torch.Tensor    # class of each training sample, int64 (n_train,), on the CPU
    # Gives a loader of the training images as they are, in order; of those numbers alone where it is given some.
    unaugmented_loader: Callable[..., Iterable] | None = None
    test_labels: torch.Tensor | None = None     # class of each test sample, int64 (n_test,), on the CPU
    classes: tuple[str, ...] = ()               # their names
    mean: tuple[float, ...] = memory.MEAN       # of the colours, of pixels from 0 to 1: with it and `std` both loaders
    std: tuple[float, ...] = memory.STD         # normalise images
    crop_pct: float = 1.0       # test images are the centre of an image whose shorter side is image_size / crop_pct
    images_in: str | None = None                # 'memory' or 'disk', where both are possible
    fit: str = 'crop'           # how oblong images become squares, of models.inputs.FITS
    held_out: str = ''          # the name of the split that is measured, where the data have several
    split: dict | None = None       # --split: name of a split -> names of its images
    same_classes: bool = False      # --same_classes: the names in a checkpoint are not compared with `classes`
    checksum: int | None = None     # of all images of both loaders, whatever --train_fraction is

    @property
    def sizes(self) -> str:
        """The numbers of training and test images, and the split of the test images."""
        where = f' in {self.held_out}' if self.held_out else ''
        return f'{self.n_train} training images, {len(self.test_labels)} test images{where}'

    @property
    def n_train(self) -> int:
        """Training samples."""
        return len(self.labels)

    @property
    def inputs(self) -> dict:
        """How a net that is trained on these data sees images; see models.inputs.Inputs."""
        return {'mean': [*self.mean], 'std': [*self.std], 'size': self.image_size, 'interpolation': 'bilinear',
                'fit': self.fit}


def dataset_key(dataset: str) -> str:
    """The key of a data set in the dictionaries above: 'hf' for all of Hugging Face, else its name."""
    return 'hf' if dataset.startswith(huggingface.PREFIX) else dataset


def check_dataset(opt) -> None:
    """Raises UserError when no data set has the name opt.dataset, or the loader that is asked for cannot serve it."""
    kind = dataset_key(opt.dataset)
    if kind not in (*memory_dict, *source_dict, *LARGE) or opt.dataset == 'hf':
        known = [*memory_dict, *LARGE, 'folder', 'hf:NAME_OR_PATH']
        raise UserError(f'--dataset {opt.dataset}: no such data set; {nearest(opt.dataset, known)}')
    if opt.use_lmdb and opt.dali:
        raise UserError(f'--use-lmdb and --dali {opt.dali}: DALI reads image files itself; give one of the two')
    fraction = f'--train_fraction {opt.train_fraction:g}'
    for flag, given, names in (('--use-lmdb', opt.use_lmdb, LARGE), (f'--dali {opt.dali}', opt.dali, LARGE),
                               ('--skip_bad_images', opt.skip_bad_images, (*source_dict, *LARGE)),
                               (f'--images_in {opt.images_in}', opt.images_in != 'auto', source_dict),
                               (f'--fit {opt.fit}', opt.fit != 'crop', source_dict),
                               (f'--max_pixels {opt.max_pixels}', opt.max_pixels != MAX_PIXELS,
                                (*source_dict, *LARGE)),
                               (f'--split {comma_list(opt.split)}', opt.split, source_dict),
                               (fraction, opt.train_fraction < 1, IN_MEMORY),
                               ('--normalise measure', opt.normalise == 'measure', IN_MEMORY)):
        if given and kind not in names:
            raise UserError(f'{flag}: not for --dataset {opt.dataset}; it goes with {", ".join(names)}')
    if opt.dali and opt.aa:
        raise UserError(f'--aa {opt.aa}: DALI augments images itself; leave --dali {opt.dali} out')
    if opt.dali and opt.skip_bad_images:
        raise UserError(f'--skip_bad_images: DALI stops at an unreadable image; leave --dali {opt.dali} out')
    if opt.dali and opt.max_pixels != MAX_PIXELS:
        raise UserError(f'--max_pixels {opt.max_pixels}: DALI reads images of any size; leave --dali {opt.dali} out')


def get_dataloaders(opt, device: torch.device, drop_last: bool = False, views: tuple[str, ...] = ('weak',)) -> Data:
    """Load this process's part of opt.dataset; opt.batch_size is what it trains on in a step.

    drop_last: a short last training batch is left out. views: how each view of a training image is made, of
    augment.VIEWS; with several, images are (views, B, 3, H, W). The test set comes whole, one view an image.
    """
    data = _loaders(opt, device, drop_last or mixes(opt), views)
    data.same_classes = opt.same_classes
    if mixes(opt) or opt.reprob:
        data.train_loader = BatchAugment(data.train_loader, opt, data.num_classes, device)
    for labels, what, so in ((data.labels, 'training', 'no net can learn it'),
                             (data.test_labels, 'test', 'the accuracy does not cover it')):
        counts = torch.bincount(labels, minlength=data.num_classes)
        empty = [name for name, count in zip(data.classes, counts.tolist(), strict=True) if not count]
        if empty:
            print(f'--dataset {opt.dataset}: no {what} image of the class {listed(empty, MOST_NAMED)}: {so}')
    return data


def _loaders(opt, device, drop_last, views):
    check_dataset(opt)
    if not views or not set(views) <= set(VIEWS):
        raise ValueError(f'views {views}: at least one, each of {", ".join(VIEWS)}')
    if len(views) > 1 and opt.dali:
        raise UserError(f'--dali {opt.dali}: gives one view of an image, but --distill {opt.distill} trains on '
                        f'{len(views)}; leave --dali out')
    limit_pixels(opt.max_pixels)
    if opt.dataset in LARGE:
        return _large(opt, device, drop_last, views)
    images_in = None
    if source := source_dict.get(dataset_key(opt.dataset)):
        *sources, classes, facts = _open(source, opt)
        if opt.fit == 'crop' and distributed.is_main():
            folder.say_what_is_cut(sources[0])
        images_in = _where(opt, sources, device)
        if images_in == 'disk':
            return _read_while_training(opt, device, drop_last, views, *sources, classes, facts)
        (train_images, train_labels), (test_images, test_labels) = (folder.decode(source, opt) for source in sources)
    else:
        (train_images, train_labels), (test_images, test_labels), classes = _load(opt)
        facts = {'checksum': joint_checksum(*map(tensor_checksum, (train_images, test_images)))}
    # Of all training images, so that a teacher and its students see the same, whatever part these train on.
    mean, std = measured(train_images) if opt.normalise == 'measure' else (memory.MEAN, memory.STD)
    if opt.train_fraction < 1:
        kept = chosen(train_labels, opt.train_fraction)
        train_images, train_labels = train_images[kept], train_labels[kept]
    _check_batch_size(opt, len(train_labels))
    ranks = {'rank': distributed.rank(), 'world_size': distributed.world_size()}
    ranks |= {'mean': mean, 'std': std}
    aa = AutoAugment(opt.aa, train_images.shape[-1], mean) if opt.aa else None
    train_loader = MemoryLoader(train_images, train_labels, opt.batch_size, device, train=True, **ranks,
                                drop_last=drop_last, seed=opt.seed, channels_last=opt.channels_last, views=views,
                                aa=aa)
    test_loader = MemoryLoader(test_images, test_labels, opt.batch_size, device, **ranks,
                               channels_last=opt.channels_last)

    def in_order(kept=slice(None)):
        return MemoryLoader(train_images[kept], train_labels[kept], opt.batch_size, device, **ranks,
                            channels_last=opt.channels_last)
    return Data(train_loader, test_loader, len(classes), train_images.shape[-1], train_labels, in_order, test_labels,
                tuple(classes), mean, std, images_in=images_in, fit=opt.fit if images_in else 'crop', **facts)


def _load(opt):
    """The checked return value of the function of opt.dataset. Raises UserError that names the data set."""
    what = f'--dataset {opt.dataset}: its function in memory_dict'
    try:
        loaded = memory_dict[opt.dataset](opt)
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:      # of a user's code
        raise UserError(f'{what} fails with {type(error).__name__} ({reason(error)}); --debug shows where') from error
    if fault := memory.fault_of(loaded):
        raise UserError(f'{what} returns {fault}; wanted are (train images, labels), (test images, labels), classes: '
                        f'images uint8 (N, 3, S, S) and labels int64 (N,) as torch tensors on the CPU, classes a list '
                        f'of their names')
    return loaded


def _open(source, opt):
    """(train source, test source, classes, facts) of a module with open_sources. facts: further fields of Data."""
    if not opt.split:
        train, test, classes = source.open_sources(opt)
        checksum = joint_checksum(train.checksum(), test.checksum())
        return train, test, classes, {'held_out': test.name, 'checksum': checksum}
    whole, classes = source.open_whole(opt)
    numbers, names = divide(whole.labels, whole.names, opt.split), whole.names
    held_out = f'--split {comma_list(opt.split)}'
    if 'val' in numbers:
        held_out += f', {len(numbers["val"])} validation images, which are not used'
    return part(whole, numbers['train']), part(whole, numbers['test']), classes, {
        'held_out': held_out, 'checksum': whole.checksum(),
        'split': {name: [names[i] for i in kept] for name, kept in numbers.items()}}


def _where(opt, sources, device):
    """'memory' or 'disk', as --images_in says; on disk where all images would take over half of the free memory."""
    if opt.images_in != 'auto':
        return opt.images_in
    images, processes = sum(len(source.labels) for source in sources), distributed.world_size()
    wanted = images * 3 * (opt.image_size + 2 * PAD) ** 2 * processes
    free = min(distributed.gather(free_memory(device)))
    if wanted <= free / 2:
        return 'memory'
    print(f'--dataset {opt.dataset}: the images would take {readable_bytes(wanted)} of {readable_bytes(free)} free, so '
          f'they are read from disk while training')
    return 'disk'


def _read_while_training(opt, device, drop_last, views, train, test, classes, facts):
    mean, std = memory.MEAN, memory.STD
    if opt.normalise == 'measure':
        n = len(train.labels)
        mean, std = measured(folder.decode(part(train, range(0, n, -(-n // MEASURED))), opt)[0])
    if opt.train_fraction < 1:
        train = part(train, chosen(train.labels, opt.train_fraction).tolist())
    _check_batch_size(opt, len(train.labels))
    more = {'rank': distributed.rank(), 'world_size': distributed.world_size(),
            'pipeline': imagenet.Pipeline(opt.image_size, mean, std, cropped=False, fit=opt.fit)}
    return Data(imagenet.WorkerLoader(train, opt, device, train=True, drop_last=drop_last, views=views, **more),
                imagenet.WorkerLoader(test, opt, device, train=False, **more), len(classes), opt.image_size,
                train.labels,
                lambda kept=None: imagenet.WorkerLoader(part(train, kept), opt, device, train=False, **more),
                test.labels, tuple(classes), mean, std, images_in='disk', fit=opt.fit, **facts)


def _large(opt, device, drop_last, views):
    train, test, classes, facts = _open(imagenet, opt)
    _check_batch_size(opt, len(train.labels))
    if opt.dali:
        from .imagenet_dali import DaliLoader as Loader
    else:
        Loader = imagenet.WorkerLoader
    ranks = {'rank': distributed.rank(), 'world_size': distributed.world_size()}
    several = {'views': views} if len(views) > 1 else {}        # none with DALI
    return Data(Loader(train, opt, device, train=True, drop_last=drop_last, **ranks, **several),
                Loader(test, opt, device, train=False, **ranks), len(classes), imagenet.SIZE, train.labels,
                lambda kept=None: Loader(part(train, kept), opt, device, train=False, **ranks), test.labels,
                tuple(classes), imagenet.MEAN, imagenet.STD, imagenet.CROP_PCT, **facts)


def _check_batch_size(opt, n_train):
    batch_size = opt.batch_size * distributed.world_size()
    if batch_size > n_train:
        raise UserError(f'--batch_size {batch_size}: {opt.dataset} has {n_train} training images; '
                        f'give at most {n_train}')
