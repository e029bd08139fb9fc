"""Data sets by their name: get_dataloaders(opt, device) gives both loaders and what a net needs to know of the data."""
from dataclasses import dataclass

import torch

from helper.errors import UserError, nearest

from . import cifar, digits, folder
from .memory import MemoryLoader

# name -> function of the options: ((train images, labels), (test images, labels), classes), images uint8 (N, 3, H, W)
dataset_dict = {
    'cifar10': cifar.load_cifar10,
    'cifar100': cifar.load_cifar100,
    'digits': digits.load,
    'folder': folder.load,
}


@dataclass
class Data:
    """The two loaders, each giving (images, target, index) on the training device, and the facts of the data."""

    train_loader: MemoryLoader
    test_loader: MemoryLoader
    num_classes: int
    image_size: int         # pixels, of the square images as the net sees them
    labels: torch.Tensor    # class of each training sample, int64 (n_train,), on the CPU

    @property
    def n_train(self) -> int:
        """Training samples."""
        return len(self.labels)


def check_dataset(name: str) -> None:
    """Raises UserError when no data set has this name."""
    if name not in dataset_dict:
        raise UserError(f'--dataset {name}: no such data set; {nearest(name, dataset_dict)}')


def get_dataloaders(opt, device: torch.device, smallest_batch: int = 1) -> Data:
    """Load opt.dataset. A last training batch of fewer than smallest_batch is left out; the test set comes whole."""
    check_dataset(opt.dataset)
    (train_images, train_labels), (test_images, test_labels), classes = dataset_dict[opt.dataset](opt)
    n_train = len(train_labels)
    if opt.batch_size > n_train:
        raise UserError(f'--batch_size {opt.batch_size}: {opt.dataset} has {n_train} training images; '
                        f'give at most {n_train}')
    train_loader = MemoryLoader(train_images, train_labels, opt.batch_size, device, train=True,
                                smallest_batch=smallest_batch, seed=opt.seed, channels_last=opt.channels_last)
    test_loader = MemoryLoader(test_images, test_labels, opt.batch_size, device, channels_last=opt.channels_last)
    return Data(train_loader, test_loader, len(classes), train_images.shape[-1], train_labels)
