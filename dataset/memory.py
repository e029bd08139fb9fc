"""A data set that fits in memory: a uint8 tensor on the training device, augmented a whole batch at a time."""
import torch
import torch.nn.functional as F

from .normalise import Normalise

# CIFAR-100's training set; all small images are normalised with these, so that a student can be shipped with two
# constants.
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
PAD = 4


def batch_parts(n: int, batch_size: int, drop_last: bool, rank: int, world_size: int) -> list[tuple[int, int]]:
    """(start, end) of a process's part of each batch of an epoch of n samples, batch_size in a full one.

    A short last batch is divided evenly too, and a rest that cannot be is left out. Where it has one image a process,
    which batch normalisation cannot take, the batch before takes that one too. drop_last: no short batch at all.
    """
    whole, rest = divmod(n, batch_size * world_size)
    sizes, last = [batch_size] * whole, 0 if drop_last else rest // world_size
    if last == 1 and sizes:
        sizes[-1] += 1
    elif last:
        sizes.append(last)
    firsts = (step * batch_size * world_size for step in range(len(sizes)))
    return [(first + rank * size, first + (rank + 1) * size) for first, size in zip(firsts, sizes, strict=True)]


class MemoryLoader:
    """Batches (images (B, 3, H, W) float32, target (B,) int64, index (B,) int64), all on `device`.

    train=True shuffles and augments as the usual per-image pipeline of CIFAR does: zero-pad 4, so black before the
    normalisation, random crop back to H x W, horizontal flip with probability 1/2, scale to [0, 1], normalise.
    train=False serves the images in order, normalised. index is the sample's place in the data set.

    All random numbers come from `generator`, on the CPU, an epoch at a time: the same batches on every device, and no
    transfer between device and host inside an epoch.
    """

    def __init__(self, images: torch.Tensor, target: torch.Tensor, batch_size: int, device: torch.device,
                 train: bool = False, drop_last: bool = False, seed: int = 0, channels_last: bool = True,
                 rank: int = 0, world_size: int = 1):
        """images: uint8 (N, 3, H, W); target: int64 (N,). drop_last: a short last batch is left out.

        All of `world_size` processes draw the same epochs; in training each takes its part of every batch, of
        batch_size, and in a test every world_size-th image. `skip` batches of the next epoch are left out.
        """
        self.rank, self.world_size, self.skip = rank, world_size, 0
        self.size = tuple(images.shape[2:])
        self.batch_size, self.device, self.train, self.drop_last = batch_size, device, train, drop_last
        self.target = target.to(device)
        self.generator = torch.Generator().manual_seed(seed)
        self.normalise = Normalise(MEAN, STD, self.size[1], device, channels_last)
        images = images.permute(0, 2, 3, 1)
        if train:
            # A view of every crop: windows[n, y, x] (H, W, 3) is image n cut at row y, column x of its padded form.
            padded = F.pad(images, (0, 0, PAD, PAD, PAD, PAD)).to(device)
            self.windows = padded.unfold(1, self.size[0], 1).unfold(2, self.size[1], 1).permute(0, 1, 2, 4, 5, 3)
        else:
            self.images = images.contiguous().to(device)

    @property
    def n_samples(self) -> int:
        """Samples in the data set, of all processes."""
        return len(self.target)

    def __len__(self) -> int:
        """Batches in an epoch, of this process."""
        own = len(range(self.rank, self.n_samples, self.world_size))
        return len(self.parts()) if self.train else -(-own // self.batch_size)

    def parts(self) -> list[tuple[int, int]]:
        """Where each batch of this process begins and ends in the epoch's order."""
        return batch_parts(self.n_samples, self.batch_size, self.drop_last, self.rank, self.world_size)

    def __iter__(self):
        return self._augmented() if self.train else self._plain()

    def _plain(self):
        index = torch.arange(self.n_samples, device=self.device)[self.rank::self.world_size]
        for batch in index.split(self.batch_size) if len(index) else ():
            yield self.normalise(self.images[batch]), self.target[batch], batch

    def _augmented(self):
        n = self.n_samples
        order = torch.randperm(n, generator=self.generator)
        corner = torch.randint(0, 2 * PAD + 1, (2, n), generator=self.generator)
        flip = torch.randint(0, 2, (1, n), generator=self.generator)
        plan = torch.cat([order[None], corner, flip]).to(self.device)
        skip, self.skip = self.skip, 0
        for start, end in self.parts()[skip:]:
            index, y, x, flip = plan[:, start:end]
            crop = self.windows[index, y, x]
            crop = torch.where(flip.bool().view(-1, 1, 1, 1), crop.flip(2), crop)
            yield self.normalise(crop), self.target[index], index
