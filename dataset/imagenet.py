"""Images that worker processes read and augment while training: ImageNet, and folders that do not fit in memory."""
import contextlib
import functools
import warnings
from pathlib import Path

import torch

from helper import distributed
from helper.errors import UserError

from .augment import seeded
from .crop import Pipeline
from .decode import report_unreadable
from .folder import scan
from .image import limit_pixels
from .normalise import Normalise
from .order import EpochOrder

# --num_workers may be above the number of cores: no warning about it.
warnings.filterwarnings('ignore', message='This DataLoader will create')


def open_sources(opt):
    """({'train', 'test', maybe 'val'} -> dataset.source.Source, classes) of opt.dataset. Raises UserError."""
    root = Path(opt.data_dir) / opt.dataset
    if opt.use_lmdb:
        from .lmdb_source import open_lmdb_sources
        return open_lmdb_sources(root)
    return scan(root)


class Images(torch.utils.data.Dataset):
    """(image uint8 (S, S, 3), label, index, errors of skipped images) by (index, seed), or a UserError.

    With two views, training images are (2, S, S, 3), each view with its own crop and flip. The seed decides all random
    numbers, so that they do not depend on which worker reads the image.

    The UserError of an unreadable image is returned, because a worker process cannot raise it in one line. With
    skip_bad, the next image replaces it in training, so that the batch keeps its size; in a test, image is None.
    """

    def __init__(self, source, train: bool, skip_bad: bool, views: tuple[str, ...] = ('weak',), aa: str | None = None,
                 pipeline: Pipeline = Pipeline()):     # noqa: B008, it does not change
        self.source, self.train, self.skip_bad = source, train, skip_bad
        self.transforms = [pipeline.transform(train, aa, view) for view in (views if train else ('weak',))]

    def __len__(self):
        return len(self.source.labels)

    def __getitem__(self, index_and_seed):
        index, seed = index_and_seed
        with seeded(seed) if self.train else contextlib.nullcontext():
            return self._read(index)

    def _read(self, index):
        errors = []
        while len(errors) < len(self):
            try:
                image = self.source.read(index)
                views = [transform(image) for transform in self.transforms]
                image = views[0] if len(views) == 1 else torch.stack(views)
                return image, int(self.source.labels[index]), index, errors
            except UserError as error:
                if not self.skip_bad:
                    return error
                errors.append(str(error))
                if not self.train:
                    return None, 0, index, errors
                index = (index + 1) % len(self)
        return UserError(f'--skip_bad_images: none of the {len(self)} images can be read; the first is {min(errors)}')


def collate(samples):
    """Samples of Images -> (images (B, S, S, 3) uint8, target (B,), index (B,), errors), or the error among them."""
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    errors = [error for sample in samples for error in sample[3]]
    readable = [sample for sample in samples if sample[0] is not None]
    if not readable:
        return None, None, None, errors
    images, target, index, _ = zip(*readable, strict=True)
    return torch.stack(images), torch.tensor(target), torch.tensor(index), errors


class WorkerLoader:
    """Batches (images (B, 3, S, S) float32, target (B,), index (B,)) on `device`, read by worker processes.

    With two views, training images are (2, B, 3, S, S). A line after an epoch names newly skipped images.
    """

    def __init__(self, source, opt, device: torch.device, train: bool = False, drop_last: bool = False, rank: int = 0,
                 world_size: int = 1, views: tuple[str, ...] = ('weak',), pipeline: Pipeline = Pipeline()):     # noqa: B008
        self.n_samples, self.batch_size, self.device = len(source.labels), opt.batch_size, device
        self.order = EpochOrder(self.n_samples, opt.batch_size, train, drop_last, opt.seed, rank, world_size)
        self.loader = torch.utils.data.DataLoader(
            Images(source, train, opt.skip_bad_images, views, opt.aa, pipeline), batch_sampler=self.order,
            collate_fn=collate, worker_init_fn=functools.partial(_begin_worker, opt.max_pixels),
            num_workers=opt.num_workers, persistent_workers=opt.num_workers > 0, pin_memory=device.type == 'cuda',
            generator=torch.Generator().manual_seed(opt.seed))
        self.normalise = Normalise(pipeline.mean, pipeline.std, pipeline.size, device, opt.channels_last)
        self.skip_bad, self.reported = opt.skip_bad_images, set()      # errors that a line has named

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        errors, n_read = set(), 0
        for batch in self.loader:
            if isinstance(batch, UserError):
                raise batch
            errors.update(batch[3])
            if batch[0] is None:
                continue
            n_read += len(batch[1])
            images, target, index = (t.to(self.device, non_blocking=True) for t in batch[:3])
            images = self.normalise(images)
            yield images if images.dim() == 4 else images.transpose(0, 1), target, index
        if self.skip_bad:
            parts = distributed.gather((errors, n_read))
            errors = set().union(*(part[0] for part in parts))
            report_unreadable(errors, sum(part[1] for part in parts), 'skipped', reported=self.reported)
            self.reported |= errors


def _begin_worker(max_pixels, _):
    limit_pixels(max_pixels)
