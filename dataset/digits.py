"""scikit-learn's bundled handwritten digits: 1,797 real 8x8 scans, enlarged to 32x32. Nothing is downloaded."""
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from helper.errors import UserError


def load(opt):
    """((train images, labels), (test images, labels), classes): uint8 (N, 3, 32, 32) and int64 (N,)."""
    package = find_spec('sklearn')      # reads its file alone: importing scikit-learn takes a second
    if not package:
        raise UserError('--dataset digits: its images come with scikit-learn, which is not installed; '
                        'pip install scikit-learn')
    table = np.loadtxt(Path(package.origin).parent / 'datasets' / 'data' / 'digits.csv.gz', delimiter=',')
    scans, labels = table[:, :-1], table[:, -1].astype(np.int64)
    train, test = split(labels)
    scans = torch.tensor(scans, dtype=torch.float32).view(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(scans, size=32, mode='bilinear').round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(labels)
    return (images[train], labels[train]), (images[test], labels[test]), [str(d) for d in range(10)]


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the test images, those of scikit-learn's train_test_split(test_size=0.2,
    random_state=0, stratify=labels), order included."""
    random, counts = np.random.RandomState(0), np.bincount(labels)
    n_train = len(labels) * 4 // 5
    exact = counts * n_train / len(labels)          # training images of each class, not rounded
    rounded = exact.astype(int)
    for remainder in np.unique(exact - rounded)[::-1]:      # round up the classes with the largest remainders
        if missing := n_train - rounded.sum():
            candidates = np.flatnonzero(exact - np.floor(exact) == remainder)
            rounded[random.permutation(candidates)[:missing]] += 1
    members = [random.permutation(np.flatnonzero(labels == label)) for label in range(len(counts))]
    train = [indices[:n] for indices, n in zip(members, rounded, strict=True)]
    test = [indices[n:] for indices, n in zip(members, rounded, strict=True)]
    return random.permutation(np.concatenate(train)), random.permutation(np.concatenate(test))
