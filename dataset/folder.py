"""Trees of images, SPLIT/CLASS/*: the scan of any such tree, and small images decoded once into memory."""
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from helper.errors import UserError

from .image import read_rgb


@dataclass
class Split:
    """The files of one split and the class of each, int64 (N,)."""

    files: list[str]
    labels: torch.Tensor


def scan(root: Path, held_out: tuple[str, ...]) -> tuple[Split, Split, list[str]]:
    """(train, test, classes) of root/train/CLASS/* and the first of root/held_out/CLASS/*.

    Raises UserError for a folder that is missing, a class without images, and classes that differ between the two.
    """
    wanted = f'{root}/train/CLASS/* and {root}/{" or ".join(held_out)}/CLASS/*'
    if not root.is_dir():
        raise UserError(f'--data_dir: {root}: no such folder; wanted are {wanted}')
    other = next((root / name for name in held_out if (root / name).is_dir()), None)
    if not (root / 'train').is_dir() or other is None:
        raise UserError(f'--data_dir: {root}: needs the folders train and {" or ".join(held_out)}; wanted are {wanted}')
    train, classes = _scan_split(root / 'train')
    test, test_classes = _scan_split(other)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise UserError(f'--data_dir: {root}: train and {other.name} must have the same classes; '
                        f'only one of them has: {", ".join(odd[:10])}')
    return train, test, classes


def _scan_split(folder):
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset
    try:
        classes, class_to_idx = find_classes(folder)
        samples = make_dataset(folder, class_to_idx, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:          # no class folder, or one without an image
        raise UserError(f'--data_dir: {folder}: {" ".join(str(error).split())}') from error
    return Split([path for path, _ in samples], torch.tensor([label for _, label in samples])), classes


def load(opt):
    """((train images, labels), (test images, labels), classes): uint8 (N, 3, S, S), S = --image_size, and int64 (N,).

    From {data_dir}/train/CLASS/* and {data_dir}/test or val/CLASS/*. An image of another size is scaled and
    centre-cropped to a square. Raises UserError as scan does, and for an unreadable image.
    """
    train, test, classes = scan(Path(opt.data_dir), ('test', 'val'))
    return (_decode(train.files, opt), train.labels), (_decode(test.files, opt), test.labels), classes


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
