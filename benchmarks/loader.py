"""The loaders alone: CIFAR-size images augmented on the device, and by torchvision's transforms, an image at a time."""
import sys

import torch

from dataset.memory import MemoryLoader
from dataset.normalise import CIFAR_MEAN, CIFAR_STD
from helper import distributed

from .common import CLASSES, OnDevice, alternate, exhaust


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


def per_image(images, target, batch_size, num_workers, device, train=True):
    """A loader of PerImage in worker processes."""
    fork = 'fork' if num_workers and sys.platform == 'linux' else None      # as a script's workers start there
    return OnDevice(torch.utils.data.DataLoader(
        PerImage(images, target, train), batch_size, shuffle=train, num_workers=num_workers,
        persistent_workers=num_workers > 0, pin_memory=device.type == 'cuda', multiprocessing_context=fork), device)


def loaders(opt, device):
    """(ours, the reference one) over the same random images."""
    generator = torch.Generator().manual_seed(0)
    n = opt.batch_size * opt.steps * distributed.world_size()
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    target = torch.randint(0, CLASSES, (n,), generator=generator)
    ours = MemoryLoader(images, target, opt.batch_size, device, train=True, rank=distributed.rank(),
                        world_size=distributed.world_size())
    return ours, per_image(images, target, opt.batch_size, opt.num_workers, device)


def measure(opt, device):
    """A row for each loader of CIFAR-size images."""
    ours, reference = loaders(opt, device)
    speed = alternate({'reference': lambda: exhaust(reference), 'fast': lambda: exhaust(ours)},
                      opt.batch_size * opt.steps, opt, device)
    return [{'loader': name, 'images/s': s, 'ratio': s / speed['reference']} for name, s in speed.items()]
