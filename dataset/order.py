"""The order of the images of each epoch, in batches, for one of several processes."""
import torch

PAD = 4         # zeros around an image of which a random crop is taken


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


class EpochOrder:
    """The random order of n images in each epoch, and which part of it is each batch of this process.

    All processes draw the same numbers from `generator`. To continue an interrupted epoch, restore the generator's
    state at the epoch's start and set `first_batch` to the number of batches that are done.
    """

    def __init__(self, n: int, batch_size: int, drop_last: bool, seed: int, rank: int = 0, world_size: int = 1):
        self.n = n
        self.all_parts = batch_parts(n, batch_size, drop_last, rank, world_size)
        self.generator = torch.Generator().manual_seed(seed)
        self.first_batch = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.all_parts)

    def permutation(self) -> torch.Tensor:
        """The images' numbers, in the order of a new epoch."""
        return torch.randperm(self.n, generator=self.generator)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Random whole numbers, 0 <= i < high."""
        return torch.randint(high, shape, generator=self.generator)

    def parts(self) -> list[tuple[int, int]]:
        """(start, end) of the batches that this epoch still needs."""
        first, self.first_batch = self.first_batch, 0
        return self.all_parts[first:]
