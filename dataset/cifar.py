"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009, Learning Multiple Layers of Features from Tiny Images) by torchvision."""
import torch

from helper.errors import UserError


def _load(name, opt):
    from torchvision import datasets
    splits = []
    for train in (True, False):
        try:
            split = getattr(datasets, name)(opt.data_dir, train=train, download=True)
        except (OSError, RuntimeError) as error:        # no network, an unwritable folder, a damaged archive
            raise UserError(f'--dataset {opt.dataset}: not whole under --data_dir {opt.data_dir}, and the download '
                            f'failed ({" ".join(str(error).split())}); put torchvision\'s archive of it there, or use '
                            f'--dataset digits, which needs none') from error
        images = torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
        splits.append((images, torch.tensor(split.targets, dtype=torch.int64)))
    return *splits, split.classes


def load_cifar10(opt):
    """((train images, labels), (test images, labels), classes): uint8 (N, 3, 32, 32) and int64 (N,)."""
    return _load('CIFAR10', opt)


def load_cifar100(opt):
    """As load_cifar10, 100 classes."""
    return _load('CIFAR100', opt)
