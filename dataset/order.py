"""The order of the images in an epoch, in batches, for one of several processes."""
import zlib
from dataclasses import dataclass

import torch

PAD = 4         # pixels of zero padding around an image before a random crop
WINDOW = 8      # shards whose images are mixed in training


def batch_ranges(n: int, batch_size: int, drop_last: bool, rank: int, world_size: int) -> list[tuple[int, int]]:
    """(start, end) of this process's part of each training batch in an epoch of n samples.

    batch_size: of one process. A short last batch is divided evenly, and the remainder is left out. If it would have a
    single image per process, which batch normalisation cannot take, that image joins the batch before. drop_last: leave
    out the short batch.
    """
    n_full, rest = divmod(n, batch_size * world_size)
    sizes, last = [batch_size] * n_full, 0 if drop_last else rest // world_size
    if last == 1 and sizes:
        sizes[-1] += 1
    elif last:
        sizes.append(last)
    starts = (step * batch_size * world_size for step in range(len(sizes)))
    return [(start + rank * size, start + (rank + 1) * size) for start, size in zip(starts, sizes, strict=True)]


@dataclass(frozen=True)
class Repetition:
    """--cache_epochs: the augmentation of an image follows from the seed, the epoch modulo `epochs`, and its index."""

    epochs: int
    seed: int = 0               # --cache_seed
    with_order: bool = False    # the order of the images repeats too, because --mixup and the like depend on the batch


class EpochOrder:
    """The order of n images in each epoch, random in training, and the part of each batch that this process gets.

    All processes draw the same numbers from `generator`. To continue an interrupted epoch, restore the generator's
    state at the epoch's start and set `first_batch` to the number of batches that are done.

    epoch: number of the current epoch, from 1, set by the training loop; it only matters with a `repetition`.
    """

    def __init__(self, n: int, batch_size: int, train: bool, drop_last: bool, seed: int, rank: int = 0,
                 world_size: int = 1, shards: torch.Tensor | None = None, repetition: Repetition | None = None):
        """shards: int64 (n,), the shard of each image, for shuffle_shards; None if any image can be read at any time.
        """
        self.n, self.train, self.rank, self.shards = n, train, rank, shards
        self.ranges = batch_ranges(n, batch_size, drop_last, rank, world_size)
        # Of an epoch and all processes; the other images, the last ones of the order, are left out.
        self.images_in_batches = world_size * sum(end - start for start, end in self.ranges)
        self.generator = torch.Generator().manual_seed(seed)
        self.first_batch = 0
        self.epoch, self.repetition, self.augmentation = 1, repetition, torch.Generator()
        indices = range(rank, n, world_size)
        self.test_batches = [indices[i:i + batch_size] for i in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        """Batches in an epoch, of this process."""
        return len(self.ranges if self.train else self.test_batches)

    def __iter__(self):
        """Yield the batches of an epoch, each a list of (index, seed of its augmentation)."""
        if not self.train:
            yield from ([(index, 0) for index in indices] for indices in self.test_batches)
            return
        order = self.permutation().tolist()
        seeds = self.integers(2**63 - 1).tolist()
        for start, end in self.remaining_ranges():
            yield list(zip(order[start:end], seeds[start:end], strict=True))

    @property
    def repeated_epoch(self) -> int:
        """The number of the repeated epoch that the current epoch equals, from 0; without repetition 0."""
        return (self.epoch - 1) % self.repetition.epochs if self.repetition else 0

    def batch_seed(self, number: int) -> int:
        """A seed for the random numbers of batch `number` of this process in a repeated epoch."""
        return zlib.crc32(f'{self.repetition.seed} {self.repeated_epoch} {self.rank} {number}'.encode())

    def slots(self, index: torch.Tensor, n_views: int) -> torch.Tensor:
        """The numbers of images (B,) in the files of a repeated epoch: (B,), or (n_views, B) for several views."""
        return index if n_views == 1 else index + self.n * torch.arange(n_views)[:, None]

    def permutation(self) -> torch.Tensor:
        """The image indices in the order of a new epoch. Precedes all other random numbers of the epoch."""
        if self.repetition:
            self.augmentation.manual_seed(zlib.crc32(f'{self.repetition.seed} {self.repeated_epoch}'.encode()))
        self.current = self._images()
        return self.current

    def _images(self):
        """The image indices of `permutation`."""
        return self._shuffle(self.augmentation if self.repetition and self.repetition.with_order else self.generator)

    def _shuffle(self, generator):
        return torch.randperm(self.n, generator=generator) if self.shards is None else \
            shuffle_shards(self.shards, generator)

    def integers(self, high: int, *rows: int) -> torch.Tensor:
        """Random integers (*rows, images), 0 <= i < high, for the augmentation of the images in the epoch's order."""
        return self._draw(lambda n, generator: torch.randint(high, (*rows, n), generator=generator))

    def flips(self, probability: float) -> torch.Tensor:
        """Whether each image is flipped, int64 (1, images)."""
        if probability in (0, 1):
            return torch.full((1, len(self.current)), int(probability))
        if probability == 0.5:
            return self.integers(2, 1)
        return self._draw(lambda n, generator: (torch.rand((1, n), generator=generator) < probability).long())

    def _draw(self, draw):
        """The numbers of draw(n, generator). In repeated epochs each image index has its own, in any order."""
        if self.repetition:
            return draw(self.n, self.augmentation)[..., self.current]
        return draw(len(self.current), self.generator)

    def remaining_ranges(self) -> list[tuple[int, int]]:
        """(start, end) of the batches that remain in this epoch."""
        first, self.first_batch = self.first_batch, 0
        return self.ranges[first:]


class AccompanyingOrder(EpochOrder):
    """The order of n images whose batches each accompany a batch of `main`, the order of other images.

    The images come in random passes, and an epoch begins where the last one ended. All random numbers follow from the
    seed of `main`, its epoch and the batch size of all processes, so that there is no state to save.
    """

    def __init__(self, n: int, batch_size: int, train: bool, drop_last: bool, seed: int, rank: int = 0,
                 world_size: int = 1, shards: torch.Tensor | None = None, repetition: Repetition | None = None, *,
                 main: EpochOrder):
        super().__init__(n, batch_size, train, drop_last, seed, rank, world_size, shards, repetition)
        self.main, self.images_in_batches = main, len(main) * batch_size * world_size
        self.ranges = batch_ranges(self.images_in_batches, batch_size, drop_last, rank, world_size)

    def follow(self) -> None:
        """Take over the epoch and the first batch of `main`. Precedes both iterators."""
        self.epoch, self.first_batch = self.main.epoch, self.main.first_batch

    def _images(self):
        seed, start = self.main.generator.initial_seed(), (self.epoch - 1) * self.images_in_batches
        first, last = start // self.n, (start + self.images_in_batches - 1) // self.n       # passes of this epoch
        passes = [self._shuffle(self._seeded(f'{seed} pass {number}')) for number in range(first, last + 1)]
        self._seeded(f'{seed} epoch {self.epoch}')      # for the augmentation
        return torch.cat(passes)[start - first * self.n:][:self.images_in_batches]

    def _seeded(self, text):
        return self.generator.manual_seed(zlib.crc32(text.encode()))


def shuffle_shards(shards: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random order of n images that reads from at most WINDOW + 1 shards at any time. shards: int64 (n,), of each.

    The shards follow each other at random, and an image comes up to WINDOW shards later than the first of its shard.
    Up to WINDOW shards are shuffled as a whole.
    """
    numbers = shards.unique()
    if len(numbers) <= WINDOW:
        return torch.randperm(len(shards), generator=generator)
    positions = torch.empty(int(numbers.max()) + 1, dtype=torch.float64)
    positions[numbers] = torch.randperm(len(numbers), generator=generator).double()
    delays = WINDOW * torch.rand(len(shards), generator=generator, dtype=torch.float64)
    return torch.argsort(positions[shards] + delays, stable=True)
