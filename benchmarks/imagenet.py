"""The loaders of {data_dir}/imagenet alone at 224 pixels: torchvision's usual pipeline, and each of ours."""
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from dataset import get_dataloaders
from dataset.image import MAX_PIXELS
from helper.errors import UserError

from .common import OnDevice, alternate, exhaust


def torchvision_loader(opt, device):
    """{data_dir}/imagenet/train as torchvision's own examples read it: floats, normalised in the workers."""
    from torchvision import datasets
    from torchvision.transforms import v2

    from dataset.imagenet import SIZE
    from dataset.normalise import IMAGENET_MEAN, IMAGENET_STD
    steps = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.ToImage(),
                        v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    images = datasets.ImageFolder(Path(opt.data_dir) / 'imagenet' / 'train', steps)
    return OnDevice(torch.utils.data.DataLoader(
        images, opt.batch_size, shuffle=True, num_workers=opt.num_workers, pin_memory=device.type == 'cuda',
        persistent_workers=opt.num_workers > 0), device)


def measure(opt, device):
    """A row for each training loader of {data_dir}/imagenet, an epoch of each in turn."""
    found = {}
    for name, flags in (('folder', {}), ('lmdb', {'use_lmdb': True}), ('dali cpu', {'dali': 'cpu'}),
                        ('dali gpu', {'dali': 'gpu'})):
        settings = SimpleNamespace(**{
            'aa': None, 'normalise': 'usual', 'fit': 'crop', 'max_pixels': MAX_PIXELS,
            'images_in': 'auto', 'split': None, 'same_classes': False, 'mixup': 0, 'cutmix': 0, 'reprob': 0,
            'dataset': 'imagenet', 'data_dir': opt.data_dir, 'batch_size': opt.batch_size, 'channels_last': True,
            'num_workers': opt.num_workers, 'seed': 0, 'train_fraction': 1.0, 'use_lmdb': False, 'dali': None,
            'skip_bad_images': False, **flags})
        try:
            found[name] = get_dataloaders(settings, device).train_loader
        except UserError as error:
            print(f'{name}: left out, {error}', file=sys.stderr)
    if not found:
        raise UserError(f'--data_dir {opt.data_dir}: no imagenet there that could be read')
    found = {'torchvision': torchvision_loader(opt, device), **found}
    images = {loader.n_samples for loader in found.values()}
    speed = alternate({name: lambda loader=loader: exhaust(loader) for name, loader in found.items()}, max(images), opt,
                      device)
    return [{'loader': name, 'images/s': s, 'ratio': s / speed['torchvision']} for name, s in speed.items()]
