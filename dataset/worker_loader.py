"""Images that worker processes read and augment while training: ImageNet, and folders that do not fit in memory."""
import contextlib
import functools
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from helper import distributed
from helper.errors import UserError

from .augment import seeded
from .crop import Pipeline
from .decode import ADVICE, report_unreadable
from .image import limit_pixels
from .normalise import Normalise
from .order import EpochOrder, Repetition
from .source import SourceError

SMALLEST_PART = 8       # images of a batch that one worker process reads, at least
BATCHES_AHEAD = 2       # batches for each worker process that are read before they are needed

# --num_workers may be above the number of cores: no warning about it.
warnings.filterwarnings('ignore', message='This DataLoader will create')


class Images(Dataset):
    """A data set whose index is (requested index, seed).

    An item is a UserError or (image uint8 (S, S, 3), label, index of the image that was read, requested index, errors).

    With two views, training images are (2, S, S, 3), each view with its own crop and flip. The seed decides all random
    numbers, so that they do not depend on which worker reads the image.

    The UserError of an unreadable image is returned, because a worker process cannot raise it in one line. With
    skip_bad, the next image replaces it in training, so that the batch keeps its size; in a test, image is None.
    """

    def __init__(self, source, train: bool, skip_bad: bool, views: tuple[str, ...] = ('weak',), aa: str | None = None,
                 pipeline: Pipeline = Pipeline()):     # noqa: B008, it does not change
        self.source, self.train, self.skip_bad = source, train, skip_bad
        # With two views, each would decode the image again.
        self.decodes_crop_only = train and pipeline.crop == 'resized' and len(views) == 1
        self.transforms = [pipeline.transform(train, aa, view) for view in (views if train else ('weak',))]

    def __len__(self):
        return len(self.source.labels)

    def __getitem__(self, index_and_seed):
        index, seed = index_and_seed
        with seeded(seed) if self.train else contextlib.nullcontext():
            sample = self._read(index)
        if isinstance(sample, UserError):
            return sample
        image, label, read_index, errors = sample
        return image, label, read_index, index, errors

    def _read(self, index):
        errors = []
        while len(errors) < len(self):
            try:
                image = self.source.open(index) if self.decodes_crop_only else self.source.read(index)
                views = [transform(image) for transform in self.transforms]
                image = views[0] if len(views) == 1 else torch.stack(views)
                return image, int(self.source.labels[index]), index, errors
            except UserError as error:
                if isinstance(error, SourceError):
                    return error
                if not self.skip_bad:
                    return UserError(f'{error}; {ADVICE}')
                errors.append(str(error))
                if not self.train:
                    return None, 0, index, errors
                index = (index + 1) % len(self)
        return UserError(f'--skip_bad_images: none of the {len(self)} images can be read; the first is {min(errors)}')


def collate(samples):
    """Samples of Images -> (images (B, S, S, 3) uint8, target, index, requested index, errors), or one of the errors.

    A worker process puts the images straight into the memory that it shares with the main process. The others are
    lists, because each tensor would take a file of shared memory.
    """
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    errors = [error for sample in samples for error in sample[-1]]
    readable = [sample for sample in samples if sample[0] is not None]
    if not readable:
        return None, [], [], [], errors
    images, target, index, requested, _ = zip(*readable, strict=True)
    return default_collate(list(images)), target, index, requested, errors


class BatchParts:
    """The batches of an order, each in n_parts parts, which worker processes read at the same time.

    So the first batch of an epoch comes sooner, and no process waits for another at the end of the epoch.
    """

    def __init__(self, order: EpochOrder, n_parts: int):
        self.order, self.n_parts = order, n_parts

    def __len__(self):
        return len(self.order) * self.n_parts

    def __iter__(self):
        for batch in self.order:
            for i in range(self.n_parts):
                yield batch[i * len(batch) // self.n_parts:(i + 1) * len(batch) // self.n_parts]


class WorkerLoader:
    """Batches (images (B, 3, S, S) float32, target (B,), index (B,)) on `device`, read by worker processes.

    With two views, training images are (2, B, 3, S, S). A line after an epoch names newly skipped images.
    """

    def __init__(self, source, opt, device: torch.device, train: bool = False, drop_last: bool = False, rank: int = 0,
                 world_size: int = 1, views: tuple[str, ...] = ('weak',),
                 pipeline: Pipeline = Pipeline(),       # noqa: B008
                 repetition: Repetition | None = None, make_order: Callable = EpochOrder):
        """repetition: for --cache_epochs; None without it. make_order: EpochOrder, or a function that returns one."""
        self.source, self.pipeline, self.views = source, pipeline, views
        self.n_samples, self.batch_size, self.device = len(source.labels), opt.batch_size, device
        self.order = make_order(self.n_samples, opt.batch_size, train, drop_last, opt.seed, rank, world_size,
                                source.shards, repetition)
        self.n_parts = max(1, min(opt.num_workers, opt.batch_size // SMALLEST_PART))
        self.loader = DataLoader(
            Images(source, train, opt.skip_bad_images, views, opt.aa, pipeline),
            batch_sampler=BatchParts(self.order, self.n_parts), collate_fn=collate,
            worker_init_fn=functools.partial(_begin_worker, opt.max_pixels), num_workers=opt.num_workers,
            prefetch_factor=BATCHES_AHEAD * self.n_parts if opt.num_workers else None,
            persistent_workers=opt.num_workers > 0, pin_memory=device.type == 'cuda',
            generator=torch.Generator().manual_seed(opt.seed))
        self.normalise = Normalise(pipeline.mean, pipeline.std, pipeline.size, device, opt.channels_last)
        self.skip_bad, self.reported = opt.skip_bad_images, set()      # errors that a line has named

    def __len__(self):
        return len(self.order)

    @property
    def n_slots(self) -> int | None:
        """Outputs that a file of the teacher cache holds; None without repetition, as there are too many variants."""
        return self.n_samples * len(self.views) if self.order.repetition else None

    def __iter__(self):
        return (batch for batch, _ in self.batches_with_slots())

    def batches_with_slots(self):
        """Yield (batch, slots int64 on the CPU), see teacher_cache/layout.py."""
        errors, n_read = set(), 0
        for parts in zip(*[iter(self.loader)] * self.n_parts, strict=True):
            for part in parts:
                if isinstance(part, UserError):
                    raise part
                errors.update(part[-1])
            images, *numbers, _ = zip(*parts, strict=True)
            target, index, requested = (torch.tensor([i for part in of_parts for i in part]) for of_parts in numbers)
            n_read += len(target)
            if len(target):
                batch = self._images(images), target.to(self.device), index.to(self.device)
                # An image that replaces an unreadable one has the augmentation, and so the slot, of that one.
                yield batch, self.order.slots(requested, len(self.views))
        if self.skip_bad:
            parts = distributed.gather((errors, n_read))
            errors = set().union(*(part[0] for part in parts))
            report_unreadable(errors, sum(part[1] for part in parts), 'skipped', reported=self.reported)
            self.reported |= errors

    def checksum(self) -> int:
        """Of the images and the options of their preprocessing."""
        return zlib.crc32(repr(self.pipeline).encode(), self.source.checksum())

    def _images(self, parts):
        """The normalised images of a batch on the device."""
        parts = [part.to(self.device, non_blocking=True) for part in parts if part is not None]
        if self.device.type != 'cpu':
            images = self.normalise(torch.cat(parts))
        else:
            # NumPy asks for huge pages, which the system hands out much faster than small ones.
            pixels = torch.from_numpy(np.empty((sum(map(len, parts)), *parts[0].shape[1:]), np.float32))
            # Threads would wait for the cores on which the worker processes run.
            with _one_thread() if self.loader.num_workers else contextlib.nullcontext():
                images = self.normalise(torch.cat(parts, out=pixels))
        return images if images.dim() == 4 else images.transpose(0, 1)


@contextlib.contextmanager
def _one_thread():
    """Compute with one thread within the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _begin_worker(max_pixels, _):
    limit_pixels(max_pixels)
