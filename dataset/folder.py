"""Any tree of small images, {data_dir}/train/CLASS/* and {data_dir}/test or val/CLASS/*, decoded once into memory."""
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from helper.errors import UserError

from .image import read_rgb


def load(opt):
    """((train images, labels), (test images, labels), classes): uint8 (N, 3, S, S), S = --image_size, and int64 (N,).

    An image of another size is scaled and centre-cropped to a square. Raises UserError for a missing or empty folder,
    classes that differ between the two, and an unreadable image.
    """
    root = Path(opt.data_dir)
    if not root.is_dir():
        raise UserError(f'--data_dir {root}: no such folder; --dataset folder reads DIR/train/CLASS/* and '
                        f'DIR/test/CLASS/*')
    held_out = next((root / name for name in ('test', 'val') if (root / name).is_dir()), None)
    if not (root / 'train').is_dir() or held_out is None:
        raise UserError(f'--data_dir {root}: needs a folder train and a folder test or val in it, '
                        f'each with one folder a class')
    train_files, train_labels, classes = _scan(root / 'train')
    test_files, test_labels, test_classes = _scan(held_out)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise UserError(f'--data_dir {root}: train and {held_out.name} must have the same classes; '
                        f'only one of them has: {", ".join(odd[:10])}')
    return ((_decode(train_files, opt), train_labels), (_decode(test_files, opt), test_labels), classes)


def _scan(folder):
    """(files, labels (N,), classes) of one split."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset
    try:
        classes, class_to_idx = find_classes(folder)
        samples = make_dataset(folder, class_to_idx, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:          # no class folder, or one without an image
        raise UserError(f'--data_dir: {" ".join(str(error).split())}') from error
    return [path for path, _ in samples], torch.tensor([label for _, label in samples]), classes


def _decode(files, opt):
    """uint8 (N, 3, S, S) of `files`, read by --num_workers threads (the decoders release Python's lock)."""
    size = opt.image_size
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)

    def read(i):
        image = read_rgb(files[i])
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        images[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

    with ThreadPoolExecutor(max(1, opt.num_workers)) as pool:
        progress = tqdm(pool.map(read, range(len(files))), total=len(files), desc='reading images', unit='img',
                        leave=False, disable=not sys.stderr.isatty())
        try:
            for _ in progress:
                pass
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    return images
