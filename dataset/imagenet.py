"""Images that are read while training, decoded and augmented by worker processes: ImageNet, and large folders."""
import functools
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from helper import distributed
from helper.errors import UserError

from .augment import AutoAugment, Strong
from .folder import check_some_are_read, resize_to_square, say_unreadable, scan
from .image import limit_pixels
from .normalise import Normalise
from .order import PAD, EpochOrder

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIZE = 224
CROP_PCT = 0.875    # of 256 pixels

# --num_workers may be above the number of cores: no warning about it.
warnings.filterwarnings('ignore', message='This DataLoader will create')


def open_sources(opt):
    """(train, test, classes) of opt.dataset: sources with `labels` (N,) and read(i) -> RGB image."""
    root = Path(opt.data_dir) / opt.dataset
    if opt.use_lmdb:
        from .lmdb_source import open_lmdb_sources
        return open_lmdb_sources(root)
    return scan(root)


@dataclass(frozen=True)
class Pipeline:
    """How images of a data set are made: their size in pixels, and what normalises their colours.

    cropped: torchvision's usual crops of ImageNet, of random size in training. Otherwise
    folder.resize_to_square scales the image, and training crops it with zero padding, as dataset.memory does.
    """

    size: int = SIZE
    mean: tuple = MEAN
    std: tuple = STD
    cropped: bool = True
    fit: str = 'crop'

    def transform(self, train: bool, aa: str | None = None):
        """RGB image -> uint8 (size, size, 3), with --aa in training."""
        from torchvision.transforms import v2
        if self.cropped:
            larger = round(self.size / CROP_PCT)
            steps = [v2.RandomResizedCrop(self.size)] if train else [v2.Resize(larger), v2.CenterCrop(self.size)]
        else:
            steps = [self._square, *([v2.RandomCrop(self.size, padding=PAD)] if train else [])]
        if train:
            steps += [v2.RandomHorizontalFlip(), *([AutoAugment(aa, self.size, self.mean)] if aa else [])]
        return v2.Compose([*steps, _pixels])

    def _square(self, image):
        return resize_to_square(image, self.size, self.fit)


def _pixels(image):
    return torch.from_numpy(np.array(image))


class Images(torch.utils.data.Dataset):
    """(image uint8 (S, S, 3), label, index, errors of the unreadable images that it replaces).

    With several views of an image in training, (views, S, S, 3), each with a crop and a flip of its own. Asked for
    by (index, seed): the seed decides all that is random, so that it does not depend on which worker reads the image.

    An unreadable image is returned as its UserError, because a worker process cannot raise one in one line. With
    skip_bad it is skipped: in training the next image takes its place, so that the batch keeps its size; otherwise the
    batch becomes smaller.
    """

    def __init__(self, source, train: bool, skip_bad: bool, views: tuple[str, ...] = ('weak',), aa: str | None = None,
                 pipeline: Pipeline = Pipeline()):     # noqa: B008, it does not change
        self.source, self.train, self.skip_bad = source, train, skip_bad
        self.transform, self.strong_transform = pipeline.transform(train, aa), pipeline.transform(train)
        self.views = views if train else ('weak',)
        self.strong = Strong() if 'strong' in self.views else None

    def __len__(self):
        return len(self.source.labels)

    def __getitem__(self, index_and_seed):
        index, seed = index_and_seed
        with torch.random.fork_rng(devices=[], enabled=self.train):
            if self.train:      # of the CPU alone: torch.manual_seed would cost a millisecond, for the GPUs
                torch.default_generator.manual_seed(seed)
            return self._get(index)

    def _get(self, index):
        errors = []
        while len(errors) < len(self):
            try:
                image = self._views(self.source.read(index))
                return image, int(self.source.labels[index]), index, errors
            except UserError as error:
                if not self.skip_bad:
                    return error
                errors.append(str(error))
                if not self.train:
                    return None, 0, index, errors
                index = (index + 1) % len(self)
        return UserError(f'--skip_bad_images: none of the {len(self)} images can be read; the first is {min(errors)}')

    def _views(self, image):
        views = [(self.transform if kind == 'weak' else self.strong_transform)(image) for kind in self.views]
        for i, kind in enumerate(self.views):
            if kind == 'strong':
                views[i] = self.strong(views[i].permute(2, 0, 1)).permute(1, 2, 0)
        return views[0] if len(views) == 1 else torch.stack(views)


def collate(samples):
    """Samples of Images -> (images (B, S, S, 3) uint8, target (B,), index (B,), errors), or the error among them.

    The first three are None if no image can be read.
    """
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    errors = [error for sample in samples for error in sample[3]]
    whole = [sample for sample in samples if sample[0] is not None]
    if not whole:
        return None, None, None, errors
    images, target, index, _ = zip(*whole, strict=True)
    return torch.stack(images), torch.tensor(target), torch.tensor(index), errors


class Batches:
    """(index, seed) of each sample of this process's part of each batch: shuffled anew every epoch, or in order."""

    def __init__(self, n: int, batch_size: int, shuffle: bool, drop_last: bool, seed: int, rank: int = 0,
                 world_size: int = 1):
        self.batch_size, self.shuffle = batch_size, shuffle
        self.order = EpochOrder(n, batch_size, drop_last, seed, rank, world_size)
        self.own = range(rank, n, world_size)       # in order

    def __len__(self):
        return len(self.order) if self.shuffle else -(-len(self.own) // self.batch_size)

    def __iter__(self):
        if not self.shuffle:
            for start in range(0, len(self.own), self.batch_size):
                yield [(index, 0) for index in self.own[start:start + self.batch_size]]
            return
        order = self.order.permutation().tolist()
        seeds = self.order.integers(2**63 - 1, len(order)).tolist()
        for start, end in self.order.parts():
            yield list(zip(order[start:end], seeds[start:end], strict=True))


class WorkerLoader:
    """Batches (images (B, 3, S, S) float32, target (B,), index (B,)) on `device`, read by worker processes.

    In training with several views, images are (views, B, 3, S, S). A line at the end of an epoch names the images that
    --skip_bad_images skips in all processes, each only once.
    """

    def __init__(self, source, opt, device: torch.device, train: bool, drop_last: bool = False, rank: int = 0,
                 world_size: int = 1, views: tuple[str, ...] = ('weak',), pipeline: Pipeline = Pipeline()):     # noqa: B008
        self.n_samples, self.batch_size, self.device = len(source.labels), opt.batch_size, device
        self.batches = Batches(self.n_samples, opt.batch_size, train, drop_last, opt.seed, rank, world_size)
        self.order = self.batches.order
        self.loader = torch.utils.data.DataLoader(
            Images(source, train, opt.skip_bad_images, views, opt.aa, pipeline), batch_sampler=self.batches,
            collate_fn=collate, worker_init_fn=functools.partial(_begin_worker, opt.max_pixels),
            num_workers=opt.num_workers, persistent_workers=opt.num_workers > 0, pin_memory=device.type == 'cuda',
            generator=torch.Generator().manual_seed(opt.seed))
        self.normalise = Normalise(pipeline.mean, pipeline.std, pipeline.size, device, opt.channels_last)
        self.skip_bad, self.named = opt.skip_bad_images, set()      # errors that a line has named

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        errors, served = set(), 0
        for batch in self.loader:
            if isinstance(batch, UserError):
                raise batch
            errors.update(batch[3])
            if batch[0] is None:
                continue
            served += len(batch[1])
            images, target, index = (t.to(self.device, non_blocking=True) for t in batch[:3])
            if images.dim() == 4:
                yield self.normalise(images), target, index
            else:
                views = self.normalise(images.flatten(0, 1)).unflatten(0, images.shape[:2])
                yield views.transpose(0, 1), target, index
        if self.skip_bad:
            self._say_skipped(errors, served)

    def _say_skipped(self, errors, served):
        parts = distributed.gather((errors, served))
        errors = set().union(*(part[0] for part in parts))
        check_some_are_read(sum(part[1] for part in parts), errors)
        if new := errors - self.named:
            say_unreadable(new, 'skipped')
        self.named |= new


def _begin_worker(max_pixels, _):
    limit_pixels(max_pixels)
