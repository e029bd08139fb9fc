"""Batches of a data set in memory: a uint8 tensor on the training device, augmented a batch at a time."""
import zlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from .augment import AutoAugment, Strong, seeded
from .normalise import CIFAR_MEAN, CIFAR_STD, Normalise
from .order import PAD, EpochOrder, Repetition

CROP_OFFSETS = 2 * PAD + 1                  # rows, or columns, where a random crop can begin
VARIANTS = 2 * CROP_OFFSETS**2              # augmentation variants of a training image: crop offsets and a flip


class MemoryLoader:
    """Batches (images (B, 3, H, W) float32, target (B,) int64, index (B,) int64) on `device`.

    train=True shuffles and augments as torchvision's usual pipeline for CIFAR: zero-pad by PAD, so black before
    normalisation, crop back to H x W at random, flip horizontally with probability hflip and vertically with vflip,
    normalise. train=False yields the images in order, normalised. index: of each sample in the data set.

    views: of augment.VIEWS. With two, training images are (2, B, 3, H, W), each view with its own crop and flip. aa:
    augments the weak view. repetition: of --cache_epochs. make_order: EpochOrder, or a function that returns one.

    All random numbers of an epoch are drawn at its start on the CPU, so that the batches are the same on every device
    and nothing is copied between device and host within an epoch.
    """

    def __init__(self, images: torch.Tensor, target: torch.Tensor, batch_size: int, device: torch.device,
                 train: bool = False, drop_last: bool = False, seed: int = 0, channels_last: bool = True,
                 rank: int = 0, world_size: int = 1, views: tuple[str, ...] = ('weak',),
                 aa: AutoAugment | None = None, mean: tuple = CIFAR_MEAN, std: tuple = CIFAR_STD, hflip: float = 0.5,
                 vflip: float = 0.0, repetition: Repetition | None = None, make_order: Callable = EpochOrder):
        """images: uint8 (N, 3, H, W). target: int64 (N,). batch_size: of one process. drop_last: without a short last
        batch."""
        self.batch_size, self.device, self.train, self.views = batch_size, device, train, views
        self.target = target.to(device)
        self.order = make_order(len(target), batch_size, train, drop_last, seed, rank, world_size,
                                repetition=repetition)
        self.mean, self.std, self.hflip, self.vflip = mean, std, hflip, vflip
        height, width = images.shape[2:]
        self.normalise = Normalise(mean, std, width, device, channels_last)
        self.operations = {'weak': aa and aa.augment_tensor, 'strong': Strong() if 'strong' in views else None}
        images = images.permute(0, 2, 3, 1)
        if train:
            # windows[n, y, x] (H, W, 3) is a view of padded image n, cropped at row y and column x.
            self.padded = F.pad(images, (0, 0, PAD, PAD, PAD, PAD)).to(device)
            self.windows = self.padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
        else:
            self.images = images.contiguous().to(device)

    @property
    def n_samples(self) -> int:
        """Samples in the data set, of all processes."""
        return len(self.target)

    @property
    def n_slots(self) -> int:
        """Outputs that a file of the teacher cache holds, see teacher_cache/layout.py."""
        return self.n_samples * (len(self.views) if self.order.repetition else VARIANTS)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self):
        if self.train:
            yield from (batch for batch, _ in self.batches_with_slots())
            return
        for indices in self.order.test_batches:
            index = torch.arange(indices.start, indices.stop, indices.step, device=self.device)
            yield self.normalise(self.images[index]), self.target[index], index

    def batches_with_slots(self):
        """Yield (training batch, slots int64 on the CPU), see teacher_cache/layout.py."""
        order = self.order.permutation()
        crops = [self._draw_crops() for _ in self.views]
        seeds = self.order.integers(2**63 - 1) if any(self.operations.values()) else None
        if self.order.repetition:
            slots = self.order.slots(order, len(self.views))
        else:
            y, x, flip, _ = crops[0]
            slots = order * VARIANTS + (y * CROP_OFFSETS + x) * 2 + flip
        plan = torch.cat([order[None], *crops]).to(self.device)
        for start, end in self.order.remaining_ranges():
            index, *crops = plan[:, start:end]
            views = [self._crop(index, *crops[i:i + 4]) for i in range(0, len(crops), 4)]
            for i, view in enumerate(self.views):
                if operation := self.operations[view]:
                    views[i] = _augment_each(operation, views[i], seeds[start:end].tolist())
            images = self.normalise(views[0] if len(views) == 1 else torch.stack(views))
            yield (images, self.target[index], index), slots[..., start:end]

    def _draw_crops(self):
        """(4, N): row and column of each image's crop, and whether it is flipped horizontally and vertically."""
        corner = self.order.integers(CROP_OFFSETS, 2)
        return torch.cat([corner, self.order.flips(self.hflip), self.order.flips(self.vflip)])

    def _crop(self, index, y, x, hflip, vflip=None):
        """uint8 (B, H, W, 3)."""
        crop = self.windows[index, y, x]
        crop = torch.where(hflip.bool().view(-1, 1, 1, 1), crop.flip(2), crop)
        return torch.where(vflip.bool().view(-1, 1, 1, 1), crop.flip(1), crop) if self.vflip else crop

    def variant(self, index: torch.Tensor, number: int) -> torch.Tensor:
        """The images of `index` (B,), on the device, in augmentation variant `number`, as in a training batch."""
        offset, flip = divmod(number, 2)
        y, x = divmod(offset, CROP_OFFSETS)
        return self.normalise(self._crop(index, y, x, torch.full_like(index, flip)))

    def checksum(self) -> int:
        """Of the images and their normalisation."""
        images = self.padded if self.train else self.images
        return zlib.crc32(np.ascontiguousarray(images.cpu().numpy()), zlib.crc32(repr((self.mean, self.std)).encode()))


def _augment_each(operation, images, seeds):
    """uint8 (B, H, W, 3), each image augmented with random numbers of its own seed."""
    augmented = []
    for image, seed in zip(images, seeds, strict=True):
        with seeded(seed):
            augmented.append(operation(image.permute(2, 0, 1)).permute(1, 2, 0))
    return torch.stack(augmented)
