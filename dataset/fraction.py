"""A part of the training images, the same for every run: how distillation does with little data."""
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
