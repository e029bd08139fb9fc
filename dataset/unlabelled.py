"""--unlabelled: training images without labels, beside the labelled ones or alone; as a data set without classes."""
import os
from pathlib import Path

import torch

from helper.cli import comma_list
from helper.errors import UserError, printable

from . import shards
from .folder import Split, list_images, print_skipped
from .image import EXTENSIONS
from .source import Source, Subset, joint_checksum
from .split import divide

HELD_OUT = 0.05     # share of the images for measuring the net, if there are no test images


def open_unlabelled(opt) -> Source:
    """All images below the folder opt.unlabelled, or of all shards of wds:FOLDER_OR_URL. Their labels mean nothing.

    Raises UserError.
    """
    flag = f'--unlabelled {opt.unlabelled}'
    if opt.unlabelled.startswith(shards.PREFIX):
        return shards.open_all(opt.unlabelled, flag, opt)
    if not os.path.isdir(opt.unlabelled):
        raise UserError(f'{flag}: no such folder; give one with images in it, at any depth, or '
                        f'{shards.PREFIX}FOLDER_OR_URL of tar shards')
    root = Path(opt.unlabelled)     # without ./ and double slashes, so that `names` do not depend on them
    try:
        images, others = list_images(root)
    except OSError as error:
        raise UserError(f'{flag}: {error.filename}: cannot be read ({error.strerror})') from error
    print_skipped(flag, others)
    if not images:
        raise UserError(f'{flag}: holds no image; images are {" ".join(EXTENSIONS)}')
    return Split(images, torch.zeros(len(images), dtype=torch.int64), root, 'unlabelled')


def report_shared_images(opt, parts: dict) -> None:
    """Print a line for validation or test images that are also among the unlabelled ones of a folder."""
    unlabelled = {*map(os.path.abspath, _files(parts['unlabelled']))}
    for part, name in (('val', 'validation'), ('test', 'test')):
        if shared := unlabelled.intersection(map(os.path.abspath, _files(parts.get(part)))):
            print(f'--unlabelled {printable(opt.unlabelled)}: holds {len(shared)} of the {name} images: the student '
                  f'also trains on them, without their labels')


def _files(images):
    """The paths of images in a folder; none for other sources."""
    if isinstance(images, Subset):
        files = _files(images.source)
        return [files[i] for i in images.indices] if files else []
    return images.files if isinstance(images, Split) else []


def open_sources(opt) -> tuple[dict[str, Subset], list[str]]:
    """({'unlabelled', 'test'} -> images, no classes) for methods that need no class. Raises UserError.

    HELD_OUT of the images are the test images, the same in every run.
    """
    source = open_unlabelled(opt)
    if len(source.labels) < 2:
        raise UserError(f'--unlabelled {opt.unlabelled}: has one image; give at least two, to hold one out')
    parts = divide(source.labels, source.names, [1 - HELD_OUT, HELD_OUT])
    return {'unlabelled': Subset(source, parts['train']), 'test': Subset(source, parts['test'])}, []


def open_whole(opt):
    """Raise UserError: --split has no effect."""
    raise UserError(f'--split {comma_list(opt.split)}: --unlabelled without --dataset holds {HELD_OUT:.0%} of the '
                    f'images out by itself; leave it out')


class WithUnlabelled:
    """A training loader that appends a batch of unlabelled images to each batch of labelled ones.

    Batches: images (B + N, 3, H, W), the targets (B,) of the first B, index (B + N,). The index of an unlabelled image
    is its number plus the number of labelled images; the same holds for slots, see teacher_cache/layout.py.
    """

    def __init__(self, labelled, unlabelled):
        """labelled, unlabelled: loaders; the order of `unlabelled` is an AccompanyingOrder."""
        self.labelled, self.unlabelled = labelled, unlabelled
        self.order, self.views = labelled.order, labelled.views
        self.batch_size = labelled.batch_size + unlabelled.batch_size
        self.n_samples = labelled.n_samples + unlabelled.order.images_in_batches     # of an epoch

    def __len__(self):
        return len(self.labelled)

    def __iter__(self):
        return (batch for batch, _ in self.batches_with_slots())

    def batches_with_slots(self):
        """Yield (batch, slots int64 on the CPU), see teacher_cache/layout.py."""
        self.unlabelled.order.follow()
        pairs = zip(self.labelled.batches_with_slots(), self.unlabelled.batches_with_slots(), strict=True)
        for ((images, target, index), slots), ((more_images, _, more_index), more_slots) in pairs:
            images = torch.cat([images, more_images], -4)
            index = torch.cat([index, more_index + self.labelled.n_samples])
            if self.n_slots is not None:
                slots = torch.cat([slots, more_slots + self.labelled.n_slots], -1)
            yield (images, target, index), slots

    @property
    def n_slots(self) -> int | None:
        """Outputs that a file of the teacher cache holds; None if there are too many variants."""
        counts = self.labelled.n_slots, self.unlabelled.n_slots
        return None if None in counts else sum(counts)

    def checksum(self) -> int:
        """Of the images and their preprocessing."""
        return joint_checksum(self.labelled.checksum(), self.unlabelled.checksum())


class WithoutLabels:
    """A training loader of unlabelled images alone: its targets are empty, (0,)."""

    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):        # order, batch_size, n_samples
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return (batch for batch, _ in self.batches_with_slots())

    def batches_with_slots(self):
        """Yield (batch, slots int64 on the CPU), see teacher_cache/layout.py."""
        for (images, target, index), slots in self.loader.batches_with_slots():
            yield (images, target[:0], index), slots
