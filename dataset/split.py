"""--split, --val_fraction and --train_fraction: parts of a data set, drawn from each class, the same in every run."""
import argparse
import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from helper.cli import number
from helper.errors import UserError, printable

SEED = 0


def parse_shares(text: str) -> list[float]:
    """A converter for argparse: '0.8,0.2' -> [0.8, 0.2]; two or three positive numbers whose sum is 1."""
    try:
        shares = [number(float, above=0)(word) for word in text.split(',')]
    except argparse.ArgumentTypeError:
        shares = []
    if len(shares) not in (2, 3) or abs(sum(shares) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f'{text[:80]}: give the shares of training and test images, as 0.8,0.2, or of '
                                         f'training, validation and test images, as 0.8,0.1,0.1; their sum is 1')
    return shares


def divide(labels: torch.Tensor, names: Sequence[str], shares: Sequence[float]) -> dict[str, list[int]]:
    """{'train', 'test'}, or with three shares {'train', 'val', 'test'} -> sorted indices of its images.

    labels: int64 (N,). names: of each image. Each class is divided by the shares, rounded; a small class fills training
    first, then test, then val. The SHA-256 of an image's name decides its part, so that an image that is added or
    removed hardly moves others.
    """
    parts = ('train', 'test') if len(shares) == 2 else ('train', 'val', 'test')
    indices = {part: [] for part in parts}
    keys = [hashlib.sha256(f'{SEED} {name}'.encode(errors='surrogateescape')).digest() for name in names]
    for label in labels.unique().tolist():
        remaining = sorted((labels == label).nonzero()[:, 0].tolist(), key=keys.__getitem__)
        n = len(remaining)
        for part, share in [*zip(parts, shares, strict=True)][:0:-1]:       # the test images first
            count = min(max(1, round(n * share)), len(remaining) - 1)
            indices[part] += remaining[:count]
            remaining = remaining[count:]
        indices['train'] += remaining
    return {part: sorted(members) for part, members in indices.items()}


def hold_out(labels: torch.Tensor, names: Sequence[str], fraction: float, classes: Sequence[str]
             ) -> dict[str, list[int]]:
    """{'train', 'val'} -> sorted indices, `fraction` of each class for --val_fraction; see divide, which decides them.

    At least one image of each class is in either part. A smaller fraction is a part of a larger one. Raises UserError
    for a class of one image, and for a fraction that leaves a part with fewer images than classes.
    """
    counts = torch.bincount(labels)
    n_classes, flag = int((counts > 0).sum()), f'--val_fraction {fraction:g}'
    if (counts == 1).any():
        name = printable(classes[int((counts == 1).nonzero()[0])])
        raise UserError(f'{flag}: the class {name} has one training image, which cannot be divided; add images to it, '
                        f'or leave it out')
    for part, share in (('validation', fraction), ('training', 1 - fraction)):
        if round(len(labels) * share) < n_classes:
            raise UserError(f'{flag}: leaves {round(len(labels) * share)} of {len(labels)} images for {part}, fewer '
                            f'than the {n_classes} classes; give a fraction from {n_classes / len(labels):.2g} to '
                            f'{1 - n_classes / len(labels):.2g}')
    parts = divide(labels, names, [1 - fraction, fraction])
    return {'train': parts['train'], 'val': parts['test']}


def stratified_indices(labels: torch.Tensor, fraction: float) -> torch.Tensor:
    """Sorted indices of the training images of --train_fraction: at least one of each class of `labels` int64 (N,).

    The labels alone decide: the part is the same for every --seed, and within every larger part.
    """
    random, labels = np.random.RandomState(SEED), labels.numpy()
    parts = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        parts.append(members[:max(1, round(len(members) * fraction))])
    return torch.from_numpy(np.sort(np.concatenate(parts)))
