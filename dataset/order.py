"""The order of the images in an epoch, in batches, for one of several processes."""
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


class EpochOrder:
    """The order of n images in each epoch, random in training, and the part of it that is each batch of this process.

    All processes draw the same numbers from `generator`. To continue an interrupted epoch, restore the generator's
    state at the epoch's start and set `first_batch` to the number of batches that are done.
    """

    def __init__(self, n: int, batch_size: int, train: bool, drop_last: bool, seed: int, rank: int = 0,
                 world_size: int = 1, shards: torch.Tensor | None = None):
        """shards: int64 (n,), the shard of each image, for shuffle_shards; None if any image can be read at any time.
        """
        self.n, self.train, self.shards = n, train, shards
        self.ranges = batch_ranges(n, batch_size, drop_last, rank, world_size)
        self.generator = torch.Generator().manual_seed(seed)
        self.first_batch = 0
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
        seeds = self.integers(2**63 - 1, len(order)).tolist()
        for start, end in self.remaining_ranges():
            yield list(zip(order[start:end], seeds[start:end], strict=True))

    def permutation(self) -> torch.Tensor:
        """The image indices in the order of a new epoch."""
        if self.shards is not None:
            return shuffle_shards(self.shards, self.generator)
        return torch.randperm(self.n, generator=self.generator)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Random integers, 0 <= i < high."""
        return torch.randint(high, shape, generator=self.generator)

    def flips(self, probability: float) -> torch.Tensor:
        """Whether each image is flipped, int64 (1, n)."""
        if probability in (0, 1):
            return torch.full((1, self.n), int(probability))
        if probability == 0.5:
            return self.integers(2, 1, self.n)
        return (torch.rand((1, self.n), generator=self.generator) < probability).long()

    def remaining_ranges(self) -> list[tuple[int, int]]:
        """(start, end) of the batches that remain in this epoch."""
        first, self.first_batch = self.first_batch, 0
        return self.ranges[first:]


def shuffle_shards(shards: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random order of n images that reads from at most WINDOW + 1 shards at any time. shards: int64 (n,), of each.

    The shards follow each other at random, and an image comes up to WINDOW shards later than the first of its shard.
    Up to WINDOW shards are shuffled as a whole.
    """
    numbers = shards.unique()
    if len(numbers) <= WINDOW:
        return torch.randperm(len(shards), generator=generator)
    places = torch.empty(int(numbers.max()) + 1, dtype=torch.float64)
    places[numbers] = torch.randperm(len(numbers), generator=generator).double()
    delays = WINDOW * torch.rand(len(shards), generator=generator, dtype=torch.float64)
    return torch.argsort(places[shards] + delays, stable=True)
