"""The training loaders of {data_dir}/imagenet alone at 224 pixels: torchvision's usual pipeline, and each of ours."""
import sys
from collections import deque
from functools import partial
from pathlib import Path

import torch

from dataset import get_dataloaders
from dataset.crop import SIZE
from dataset.normalise import IMAGENET_MEAN, IMAGENET_STD
from helper.compile import keep_memory
from helper.errors import UserError
from options import teacher_options

from .common import WorkerProcessLoader, compare

WHOLE = 'folder, whole images'      # decoded whole in training too, as test images are
LOADERS = {'folder': [], WHOLE: [], 'lmdb': ['--use-lmdb'], 'dali cpu': ['--dali', 'cpu'],
           'dali gpu': ['--dali', 'gpu']}


def torchvision_loader(opt, device):
    """{data_dir}/imagenet/train as torchvision's own examples read it: floats, normalised in the workers."""
    from torchvision import datasets
    from torchvision.transforms import v2
    steps = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.ToImage(),
                        v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    images = datasets.ImageFolder(Path(opt.data_dir) / 'imagenet' / 'train', steps)
    return WorkerProcessLoader(images, opt.batch_size, opt.num_workers, device)


def measure(opt, device):
    """A row for each training loader, an epoch of each in turn."""
    if device.type == 'cpu':
        keep_memory()       # as the training scripts do
    loaders = {}
    for name, flags in LOADERS.items():
        try:
            options = teacher_options(['--dataset', 'imagenet', '--data_dir', opt.data_dir, '--batch_size',
                                       str(opt.batch_size), '--num_workers', str(opt.num_workers), '--seed', '0',
                                       '--gpu_id', opt.gpu_id, *flags])
            loaders[name] = get_dataloaders(options, device).train_loader
            if name == WHOLE:
                loaders[name].loader.dataset.decodes_crop_only = False
        except UserError as error:
            print(f'{name}: left out, {error}', file=sys.stderr)
    if not loaders:
        raise UserError(f'--data_dir {opt.data_dir}: no imagenet there that could be read')
    loaders = {'torchvision': torchvision_loader(opt, device), **loaders}
    return compare('loader', {name: partial(deque, loader, 0) for name, loader in loaders.items()},
                   max(loader.n_samples for loader in loaders.values()), opt, device)
