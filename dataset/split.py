"""--split: divide a data set without a test set into training and test images, the same way in every run."""
import argparse
import hashlib
from collections.abc import Sequence

import torch

from helper.cli import number

SEED = 0


def shares(text: str) -> list[float]:
    """A converter for argparse: '0.8,0.2' -> [0.8, 0.2], and likewise three numbers whose sum is 1."""
    try:
        found = [number(float, above=0)(word) for word in text.split(',')]
    except argparse.ArgumentTypeError:
        found = []
    if len(found) not in (2, 3) or abs(sum(found) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f'{text[:80]}: give the shares of training and test images, as 0.8,0.2, or of '
                                         f'training, validation and test images, as 0.8,0.1,0.1; their sum is 1')
    return found


def divide(labels: torch.Tensor, names: Sequence[str], shares: Sequence[float]) -> dict[str, list[int]]:
    """{'train', 'test'}, or with three shares {'train', 'val', 'test'} -> the indices of its images, sorted.

    labels: int64 (N,). names: of each image. Each class is divided by the shares, rounded; a small class fills training
    first, then test, then val. The SHA-256 of an image's name and a fixed seed decides its part, not --seed; other
    images of the class hardly matter.
    """
    parts = ('train', 'test') if len(shares) == 2 else ('train', 'val', 'test')
    found = {part: [] for part in parts}
    keys = [hashlib.sha256(f'{SEED} {name}'.encode(errors='surrogateescape')).digest() for name in names]
    for label in labels.unique().tolist():
        left = sorted((labels == label).nonzero()[:, 0].tolist(), key=keys.__getitem__)
        n = len(left)
        for part, share in [*zip(parts, shares, strict=True)][:0:-1]:       # the test images first
            count = min(max(1, round(n * share)), len(left) - 1)
            found[part] += left[:count]
            left = left[count:]
        found['train'] += left
    return {part: sorted(numbers) for part, numbers in found.items()}
