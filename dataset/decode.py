"""Decode the images of a source into memory, as squares of --image_size pixels."""
import contextlib
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TextIO

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from helper.errors import UserError, printable

MOST_NAMED = 5      # unreadable images that a message lists
SAMPLE = 32         # training images whose shape is checked


class Decoded(NamedTuple):
    """A split in memory: images uint8 (N, 3, S, S) and labels int64 (N,)."""

    images: torch.Tensor
    labels: torch.Tensor


def decode_all(source, opt) -> Decoded:
    """All images of a source, as squares by --fit. Raises UserError, or with --skip_bad_images leaves bad images out.
    """
    size, n = opt.image_size, len(source.labels)
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    is_readable, errors = torch.ones(n, dtype=torch.bool), []

    def read(i):
        try:
            image = source.read(i)
        except UserError as error:
            if not opt.skip_bad_images:
                raise
            is_readable[i] = False
            errors.append(str(error))
            return
        images[i] = torch.from_numpy(np.array(resize_to_square(image, size, opt.fit))).permute(2, 0, 1)

    with ThreadPoolExecutor(max(1, opt.num_workers)) as pool:       # the decoders release Python's lock
        try:
            for _ in tqdm(pool.map(read, range(n)), total=n, desc='reading images', unit='img', leave=False,
                          disable=not sys.stderr.isatty()):
                pass
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    report_unreadable(errors, int(is_readable.sum()), 'left out')
    return Decoded(images[is_readable], source.labels[is_readable]) if errors else Decoded(images, source.labels)


def resize_to_square(image: Image.Image, size: int, fit: str = 'crop') -> Image.Image:
    """The image scaled to size x size pixels. fit: of models.inputs.FITS, for oblong images.

    crop: scale the centre square. squash: scale both sides. pad: scale the longer side, and add black.
    """
    if image.size == (size, size):
        return image
    method = Image.Resampling.BILINEAR
    if fit == 'squash':
        return image.resize((size, size), method)
    if fit == 'pad':        # ImageOps.pad places some images one pixel away
        scaled = [max(1, round(side * size / max(image.size))) for side in image.size]
        square = Image.new('RGB', (size, size))
        square.paste(image.resize(scaled, method), [(size - side) // 2 for side in scaled])
        return square
    return ImageOps.fit(image, (size, size), method)


def report_cropping(source) -> None:
    """Print a line if --fit crop cuts off parts of the images of this source; checks SAMPLE of them."""
    n, shares = len(source.labels), []
    for i in range(0, n, -(-n // SAMPLE)):
        with contextlib.suppress(UserError):
            width, height = source.read(i).size
            shares.append(min(width, height) / max(width, height))
    cropped = [share for share in shares if share < 1]
    if cropped:
        least, most = f'{min(cropped):.0%}', f'{max(cropped):.0%}'
        print(f'--fit crop: the centre square of each image is used; of {len(shares)} training images checked, '
              f'{len(cropped)} are oblong and keep {least if least == most else f"{least} to {most}"} of their pixels; '
              f'--fit squash or --fit pad keep all')


def report_unreadable(errors: Collection[str], n_readable: int, action: str, to: TextIO | None = None,
                      reported: Collection[str] = ()) -> None:
    """Print a line that names images that --skip_bad_images skips, except `reported`. Raises UserError if none is left.
    """
    if errors and not n_readable:
        raise UserError(f'--skip_bad_images: none of the {len(errors)} images can be read; the first is {min(errors)}')
    errors = sorted(error for error in errors if error not in reported)
    if errors:
        more = f'; and {len(errors) - MOST_NAMED} more' if len(errors) > MOST_NAMED else ''
        print(f'{len(errors)} unreadable images {action}: {printable("; ".join(errors[:MOST_NAMED]))}{more}', file=to)
