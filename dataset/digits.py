"""scikit-learn's bundled handwritten digits: 1,797 real 8x8 scans, enlarged to 32x32. Nothing is downloaded."""
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from helper.errors import UserError


def load(opt):
    """((train images, labels), (test images, labels), classes): uint8 (N, 3, 32, 32) and int64 (N,).

    Four fifths train, one fifth tests, each class in proportion, by a fixed seed.
    """
    found = find_spec('sklearn')        # its file alone: importing scikit-learn takes a second
    if not found:
        raise UserError('--dataset digits: its images come with scikit-learn, which is not installed; '
                        'pip install scikit-learn')
    table = np.loadtxt(Path(found.origin).parent / 'datasets' / 'data' / 'digits.csv.gz', delimiter=',')
    scans, labels = table[:, :-1], table[:, -1].astype(np.int64)
    train, test = split(labels)
    scans = torch.tensor(scans, dtype=torch.float32).view(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(scans, size=32, mode='bilinear').round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(labels)
    return (images[train], labels[train]), (images[test], labels[test]), [str(d) for d in range(10)]


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the training and of the test images.

    The same, in the same order, as of scikit-learn's train_test_split(test_size=0.2, random_state=0, stratify=labels).
    """
    random, counts = np.random.RandomState(0), np.bincount(labels)
    total = len(labels) * 4 // 5
    exact = counts * total / len(labels)        # of each class for training
    each = exact.astype(int)
    for rest in np.unique(exact - each)[::-1]:      # what rounding down leaves: the largest rests first
        if missing := total - each.sum():
            alike = np.flatnonzero(exact - np.floor(exact) == rest)
            each[random.permutation(alike)[:missing]] += 1
    parts = [], []
    for label, n in enumerate(each):
        members = random.permutation(np.flatnonzero(labels == label))
        parts[0].append(members[:n])
        parts[1].append(members[n:])
    train, test = (random.permutation(np.concatenate(part)) for part in parts)
    return train, test
