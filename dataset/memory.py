"""A data set that fits in memory: a uint8 tensor on the training device, augmented a whole batch at a time."""
import zlib

import numpy as np
import torch
import torch.nn.functional as F

from .augment import AutoAugment, Strong, seeded
from .normalise import Normalise
from .order import PAD, EpochOrder

# CIFAR-100's training set; all small images are normalised with these, unless --normalise measure is given.
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
CROP_OFFSETS = 2 * PAD + 1                  # of a crop, in a row or a column
VARIANTS = 2 * CROP_OFFSETS**2                 # that a training image can take: a place of the crop, and a flip


def fault_of(loaded) -> str:
    """The fault in the value that a function of memory_dict returns, as text; empty if there is none."""
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
            return f'{which} labels of shape {tuple(labels.shape)} for {len(images)} images'
        low, high = labels.min().item(), labels.max().item()
        if low < 0 or high >= len(classes):
            return f'{which} labels from {low} to {high} for {len(classes)} classes, which count from 0'
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


class MemoryLoader:
    """Batches (images (B, 3, H, W) float32, target (B,) int64, index (B,) int64), all on `device`.

    train=True shuffles and augments as the usual per-image pipeline of CIFAR does: zero-pad 4, so black before the
    normalisation, random crop back to H x W, horizontal flip with probability 1/2, scale to [0, 1], normalise.
    train=False serves the images in order, normalised. index is the sample's place in the data set.

    views: how each view of an image is made, see augment.VIEWS. With several, images are (views, B, 3, H, W), each view
    with a crop and a flip of its own. aa: what --aa adds to the weak view.

    If with_slots is set, a training batch also has slots (B,) int64 on the CPU: index * VARIANTS + variant.

    All random numbers are drawn on the CPU, an epoch at a time: the same batches on every device, and no transfer
    between device and host inside an epoch.
    """

    def __init__(self, images: torch.Tensor, target: torch.Tensor, batch_size: int, device: torch.device,
                 train: bool = False, drop_last: bool = False, seed: int = 0, channels_last: bool = True,
                 rank: int = 0, world_size: int = 1, views: tuple[str, ...] = ('weak',),
                 aa: AutoAugment | None = None, mean: tuple = MEAN, std: tuple = STD):
        """images: uint8 (N, 3, H, W); target: int64 (N,). drop_last: a short last batch is left out.

        All of `world_size` processes draw the same epochs; in training each takes its part of every batch, of
        batch_size, and in a test every world_size-th image.
        """
        self.rank, self.world_size = rank, world_size
        self.size = tuple(images.shape[2:])
        self.batch_size, self.device, self.train, self.views = batch_size, device, train, views
        self.target = target.to(device)
        self.order = EpochOrder(len(target), batch_size, drop_last, seed, rank, world_size)
        self.mean, self.std = mean, std
        self.normalise = Normalise(mean, std, self.size[1], device, channels_last)
        self.operations = {kind: operation for kind, operation in (
            ('weak', aa and aa.pixels), ('strong', Strong() if 'strong' in views else None)) if operation}
        self.with_slots = False
        images = images.permute(0, 2, 3, 1)
        if train:
            # A view of every crop: windows[n, y, x] (H, W, 3) is image n cut at row y, column x of its padded form.
            self.padded = F.pad(images, (0, 0, PAD, PAD, PAD, PAD)).to(device)
            self.windows = self.padded.unfold(1, self.size[0], 1).unfold(2, self.size[1], 1).permute(0, 1, 2, 4, 5, 3)
        else:
            self.images = images.contiguous().to(device)

    @property
    def n_samples(self) -> int:
        """Samples in the data set, of all processes."""
        return len(self.target)

    def __len__(self) -> int:
        """Batches in an epoch, of this process."""
        own = len(range(self.rank, self.n_samples, self.world_size))
        return len(self.order) if self.train else -(-own // self.batch_size)

    def __iter__(self):
        return self._augmented() if self.train else self._plain()

    def _plain(self):
        index = torch.arange(self.n_samples, device=self.device)[self.rank::self.world_size]
        for batch in index.split(self.batch_size) if len(index) else ():
            yield self.normalise(self.images[batch]), self.target[batch], batch

    def _augmented(self):
        order = self.order.permutation()
        places = [self._places() for _ in self.views]
        seeds = self.order.integers(2**63 - 1, len(order)) if self.operations else None
        y, x, flip = places[0]
        slots = order * VARIANTS + (y * CROP_OFFSETS + x) * 2 + flip
        plan = torch.cat([order[None], *places]).to(self.device)
        for start, end in self.order.parts():
            index, *places = plan[:, start:end]
            views = [self._crop(index, *places[i:i + 3]) for i in range(0, len(places), 3)]
            for i, kind in enumerate(self.views):
                if kind in self.operations:
                    views[i] = self._each(self.operations[kind], views[i], seeds[start:end].tolist())
            images = [self.normalise(view) for view in views]
            batch = images[0] if len(images) == 1 else _stack(images), self.target[index], index
            yield (*batch, slots[start:end]) if self.with_slots else batch

    def _places(self):
        """(3, N): row and column of each image's crop, and whether it is flipped."""
        corner = self.order.integers(CROP_OFFSETS, 2, self.n_samples)
        return torch.cat([corner, self.order.integers(2, 1, self.n_samples)])

    def _crop(self, index, y, x, flip):
        """uint8 (B, H, W, 3)."""
        crop = self.windows[index, y, x]
        return torch.where(flip.bool().view(-1, 1, 1, 1), crop.flip(2), crop)

    def variant(self, index: torch.Tensor, number: int) -> torch.Tensor:
        """The images of `index` (B,), on the device, in variant `number`, as a training batch has them."""
        place, flip = divmod(number, 2)
        y, x = divmod(place, CROP_OFFSETS)
        return self.normalise(self._crop(index, y, x, torch.full_like(index, flip)))

    def checksum(self) -> int:
        """Of the images as the nets see them."""
        images = self.padded if self.train else self.images
        return zlib.crc32(np.ascontiguousarray(images.cpu().numpy()), zlib.crc32(repr((self.mean, self.std)).encode()))

    def _each(self, operation, images, seeds):
        with torch.random.fork_rng(devices=[]):
            return torch.stack([seeded(operation, image.permute(2, 0, 1), seed).permute(1, 2, 0)
                                for image, seed in zip(images, seeds, strict=True)])


def _stack(views):
    """[(B, 3, H, W), ...] -> (views, B, 3, H, W), each view with the memory layout that it had."""
    if views[0].is_contiguous():
        return torch.stack(views)
    return torch.stack([view.permute(0, 2, 3, 1) for view in views]).permute(0, 1, 4, 2, 3)
