"""The loaders alone: CIFAR-size images augmented on the device, and by torchvision's transforms, an image at a time."""
from collections import deque

import torch

from dataset.normalise import CIFAR_MEAN, CIFAR_STD

from .common import WorkerProcessLoader, compare, memory_loader, random_images


class PerImage(torch.utils.data.Dataset):
    """An image at a time through PIL and torchvision's transforms; train: cropped and flipped at random."""

    def __init__(self, images, target, train=True):
        from torchvision import transforms
        self.images, self.target = images.permute(0, 2, 3, 1).numpy(), target
        augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if train else []
        self.transform = transforms.Compose([transforms.ToPILImage(), *augment, transforms.ToTensor(),
                                             transforms.Normalize(CIFAR_MEAN, CIFAR_STD)])

    def __len__(self):
        return len(self.target)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.target[index], index


def reference_loader(opt, device):
    """PerImage in worker processes, over random images."""
    return WorkerProcessLoader(PerImage(*random_images(opt)), opt.batch_size, opt.num_workers, device)


def measure(opt, device):
    """A row for each loader."""
    reference, fast = reference_loader(opt, device), memory_loader(opt, device)
    return compare('loader', {'reference': lambda: deque(reference, 0), 'fast': lambda: deque(fast, 0)},
                   opt.batch_size * opt.steps, opt, device)
