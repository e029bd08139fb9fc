"""Folders of images, SPLIT/CLASS/*: find the files, and decode small images once into memory."""
import os
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

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.pgm', '.bmp', '.tif', '.tiff', '.webp')


@dataclass
class Split:
    """The files of one split and the class of each, int64 (N,). A source of images, as every data set's on disk is."""

    files: list[str]
    labels: torch.Tensor

    def read(self, i: int) -> Image.Image:
        """Image i as RGB. Raises UserError that names its file."""
        return read_rgb(self.files[i])


def scan(root: Path, held_out: tuple[str, ...]) -> tuple[Split, Split, list[str]]:
    """(train, test, classes) of root/train/CLASS/* and the first of root/held_out/CLASS/*.

    Raises UserError for a folder that is missing, a class without images, and classes that differ between the two.
    """
    wanted = f'{root}/train/CLASS/* and {root}/{" or ".join(held_out)}/CLASS/*'
    if not os.path.isdir(root):
        raise UserError(f'--data_dir: {root}: no such folder; wanted are {wanted}')
    other = next((root / name for name in held_out if os.path.isdir(root / name)), None)
    if not os.path.isdir(root / 'train') or other is None:
        raise UserError(f'--data_dir: {root}: needs the folders train and {" or ".join(held_out)}; wanted are {wanted}')
    train, classes = _scan_split(root / 'train')
    test, test_classes = _scan_split(other)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise UserError(f'--data_dir: {root}: train and {other.name} must have the same classes; '
                        f'only one of them has: {", ".join(odd[:10])}')
    return train, test, classes


def _scan_split(folder):
    try:
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        files = [images_below(folder / name) for name in classes]
    except OSError as error:
        raise UserError(f'--data_dir: {error.filename}: cannot be read ({error.strerror})') from error
    empty = [name for name, found in zip(classes, files, strict=True) if not found]
    if empty or not classes:
        raise UserError(f'--data_dir: {folder}: ' + (f'no image in the class {", ".join(empty[:10])}' if empty else
                        'no folder of a class') + f'; images are {" ".join(EXTENSIONS)}')
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(found) for found in files]))
    return Split([file for found in files for file in found], labels), classes


def images_below(folder) -> list[str]:
    """The image files in a folder and the folders in it, in order. Links are followed, but to each folder once."""
    seen, found = set(), []
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:        # a link has led back
            folders.clear()
            continue
        seen.add(real)
        found.append((where, sorted(name for name in names if name.lower().endswith(EXTENSIONS))))
    return [os.path.join(where, name) for where, names in sorted(found) for name in names]


def open_sources(opt) -> tuple[Split, Split, list[str]]:
    """(train, test, classes) of {data_dir}/train/CLASS/* and {data_dir}/test or val/CLASS/*. Raises as scan does."""
    return scan(Path(opt.data_dir), ('test', 'val'))


def squared(image: Image.Image, size: int) -> Image.Image:
    """An image scaled and centre-cropped to size x size pixels."""
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def decode(source, opt) -> tuple[torch.Tensor, torch.Tensor]:
    """(images uint8 (N, 3, S, S), labels) of a source, S = --image_size: scaled and centre-cropped to a square.

    By --num_workers threads: the decoders release Python's lock. Raises UserError for an unreadable image, which
    --skip_bad_images leaves out instead.
    """
    size, n = opt.image_size, len(source.labels)
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    whole = torch.ones(n, dtype=torch.bool)

    def read(i):
        try:
            image = source.read(i)
        except UserError:
            if not opt.skip_bad_images:
                raise
            whole[i] = False
            return
        images[i] = torch.from_numpy(np.array(squared(image, size))).permute(2, 0, 1)

    with ThreadPoolExecutor(max(1, opt.num_workers)) as pool:
        progress = tqdm(pool.map(read, range(n)), total=n, desc='reading images', unit='img', leave=False,
                        disable=not sys.stderr.isatty())
        try:
            for _ in progress:
                pass
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    if whole.all():
        return images, source.labels
    print(f'{n - int(whole.sum())} unreadable images left out')
    if not whole.any():
        raise UserError(f'--skip_bad_images: none of the {n} images can be read')
    return images[whole], source.labels[whole]
