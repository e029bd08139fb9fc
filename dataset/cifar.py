"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009, Learning Multiple Layers of Features from Tiny Images).

torchvision downloads missing files. It is imported only then, because that takes longer than reading the files.
"""
import contextlib
import hashlib
import pickle
from pathlib import Path

import numpy as np
import torch

from helper.errors import UserError, reason

# Folder, training files, test file, file of the class names, and the keys of labels and class names.
FILES = {
    'cifar10': ('cifar-10-batches-py', [f'data_batch_{i}' for i in range(1, 6)], 'test_batch', 'batches.meta', 'labels',
                'label_names'),
    'cifar100': ('cifar-100-python', ['train'], 'test', 'meta', 'fine_labels', 'fine_label_names')}
# Only files with these checksums are read: a pickle can run code.
MD5 = {'data_batch_1': 'c99cafc152244af753f735de768cd75f', 'data_batch_2': 'd4bba439e000b95fd0a9bffe97cbabec',
       'data_batch_3': '54ebc095f3ab1f0389bbae665268c751', 'data_batch_4': '634d18415352ddfa80567beed471001a',
       'data_batch_5': '482c414d41f54cd18b22e5b47cb7c3cb', 'test_batch': '40351d587109b95175f43aff81a1287e',
       'batches.meta': '5ff9c542aee3614f3951f8cda6e48888', 'train': '16019d7e3df5f24257cddd939b257f8d',
       'test': 'f0ef6b0ae62326f3e7ffdfab6717acfc', 'meta': '7973b15100ade9c7d40fb424638fde48'}


def _read(folder: Path, name: str) -> dict:
    """The content of a file. Raises OSError if it is missing or not the published one."""
    content = (folder / name).read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != MD5[name]:
        raise OSError(f'{folder / name} is not whole')
    return pickle.loads(content, encoding='latin1')


def _read_splits(opt):
    folder, train, test, meta, labels, names = FILES[opt.dataset]
    folder, splits = Path(opt.data_dir) / folder, []
    for files in (train, [test]):
        parts = [_read(folder, name) for name in files]
        images = torch.from_numpy(np.concatenate([part['data'] for part in parts])).view(-1, 3, 32, 32)
        splits.append((images, torch.tensor([label for part in parts for label in part[labels]], dtype=torch.int64)))
    return *splits, _read(folder, meta)[names]


def load(opt):
    """((train images, labels), (test images, labels), classes): uint8 (N, 3, 32, 32) and int64 (N,)."""
    with contextlib.suppress(OSError):
        return _read_splits(opt)
    from torchvision import datasets
    try:
        getattr(datasets, opt.dataset.upper())(opt.data_dir, download=True)
        return _read_splits(opt)
    except (OSError, RuntimeError) as error:        # no network, an unwritable folder, a damaged archive
        raise UserError(f'--dataset {opt.dataset}: not whole under --data_dir {opt.data_dir}, and the download failed '
                        f'({reason(error)}); put torchvision\'s archive of it there, or use '
                        f'--dataset digits, which needs none') from error
