"""A part of the training images, the same for every run: how distillation does with little data."""
from collections.abc import Sequence

import numpy as np
import torch


def chosen(labels: torch.Tensor, fraction: float) -> torch.Tensor:
    """Which samples --train_fraction keeps, int64 in rising order: of each class that part, rounded, at least one.

    labels: int64 (N,). The choice depends on the labels alone, not on --seed; a larger part holds every smaller one.
    """
    random, labels = np.random.RandomState(0), labels.numpy()
    kept = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        kept.append(members[:max(1, round(len(members) * fraction))])
    return torch.from_numpy(np.sort(np.concatenate(kept)))


class Part:
    """Some images of any source, by their numbers; a source itself."""

    def __init__(self, source, kept: Sequence[int]):
        self.source, self.kept, self.labels = source, kept, source.labels[list(kept)]

    def read(self, i: int):
        """Image i as RGB."""
        return self.source.read(self.kept[i])


def part(source, kept: Sequence[int] | None):
    """Those images of a source alone; the source itself where kept is None."""
    return source if kept is None else Part(source, kept)
