"""Decode all images of a source into memory: squares, or larger images for crops of random size."""
import sys
import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TextIO

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from helper.errors import UserError, counted, printable

from .crop import RESAMPLING, Pipeline
from .jpeg import resize_box
from .source import SourceError, Subset, sample_indices

MOST_NAMED = 5      # unreadable images that a message lists
SAMPLE = 32         # images whose shape is checked
SMALL = 64          # pixels; images up to this side are decoded by one thread
TASK = 64           # most images in a thread's task: one task per small image would take longer than decoding it
ADVICE = '--skip_bad_images leaves it out'       # ends the error of an unreadable image
LARGEST_SIDE = 1.5      # largest shorter side of an image for random crops, divided by the side of a crop


class Decoded(NamedTuple):
    """A split in memory: images uint8 (N, 3, S, S) and labels int64 (N,)."""

    images: torch.Tensor
    labels: torch.Tensor


def decode_squares(source, opt, pipeline: Pipeline) -> Decoded:
    """Decode all images of a source as test images. Raises UserError; --skip_bad_images leaves bad images out."""
    n = len(source.labels)
    images = torch.empty(n, 3, pipeline.size, pipeline.size, dtype=torch.uint8)

    def keep(i, image):
        images[i] = torch.from_numpy(np.array(pipeline.square(image))).permute(2, 0, 1)
    readable = _read_all(source.read, source, opt, keep)
    return Decoded(images, source.labels) if len(readable) == n else Decoded(images[readable], source.labels[readable])


class ScaledImages:
    """A split in memory for crops of random size. Each image keeps its shape, and is scaled down to LARGEST_SIDE.

    Raises UserError for an unreadable image; --skip_bad_images leaves it out.
    """

    shards = None       # any image can be read at any time

    def __init__(self, source, opt, pipeline: Pipeline):
        self.source, self.name, images = source, source.name, {}
        most = round(LARGEST_SIDE * pipeline.size)

        def keep(i, image):
            factor = min(1, most / min(image.size))
            size = tuple(max(1, round(side * factor)) for side in image.size)
            images[i] = resize_box(image, size, RESAMPLING[pipeline.interpolation]).permute(1, 2, 0).numpy()
        readable = _read_all(source.open, source, opt, keep)
        self.images, self.labels, self.readable = [images[i] for i in readable], source.labels[readable], readable

    def read(self, i: int) -> Image.Image:
        """Image i as RGB."""
        return Image.fromarray(self.images[i])

    open = read

    def checksum(self) -> int:
        """CRC-32 of the source and the indices of its readable images; another than of the images on disk."""
        return zlib.crc32(b'scaled', Subset(self.source, self.readable).checksum())


def _read_all(open_image, source, opt, keep):
    """Call keep(i, open_image(i)) for all readable images of a source, in any order. Returns their numbers, in order.
    """
    n, errors, unreadable = len(source.labels), [], set()
    threads = _decoding_threads(source, opt)
    step = max(1, min(TASK, n // (4 * threads)))

    def read(numbers):
        for i in numbers:
            try:
                keep(i, open_image(i))
            except UserError as error:
                if isinstance(error, SourceError):
                    raise
                if not opt.skip_bad_images:
                    raise UserError(f'{error}; {ADVICE}') from error
                unreadable.add(i)
                errors.append(str(error))
        return len(numbers)

    tasks = [range(start, min(n, start + step)) for start in range(0, n, step)]
    bar = tqdm(total=n, desc='reading images', unit='img', leave=False, disable=not sys.stderr.isatty())
    with bar, ThreadPoolExecutor(threads) as pool:      # the decoders release Python's lock
        try:
            for count in (pool.map if threads > 1 else map)(read, tasks):
                bar.update(count)
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    report_unreadable(errors, n - len(errors), 'left out')
    return [i for i in range(n) if i not in unreadable]


def _decoding_threads(source, opt):
    """--num_workers, or 1 for small images: several threads would wait for Python's lock longer than they decode."""
    is_large = any(max(size) > SMALL for size in _sample_sizes(source))
    return max(1, opt.num_workers) if is_large else 1


def _sample_sizes(source):
    """Yield the (width, height) of at most SAMPLE readable images of a source."""
    for i in sample_indices(source, SAMPLE):
        try:
            yield source.open(i).size
        except SourceError:
            raise
        except UserError:       # unreadable
            continue


def report_cropping(source, pipeline: Pipeline) -> None:
    """Print a line if --fit crop cuts off parts of oblong images; checks SAMPLE images of this source."""
    shares = [min(size) / max(size) for size in _sample_sizes(source)]
    cropped = [share * pipeline.crop_pct**2 for share in shares if share < 1]
    if cropped:
        least, most = f'{min(cropped):.0%}', f'{max(cropped):.0%}'
        images = 'each image' if pipeline.crop == 'padded' else 'each test image'
        checked = counted(len(shares), 'training image')
        print(f'--fit crop: the centre square of {images} is used; oblong images ({len(cropped)} of {checked} checked) '
              f'keep {least if least == most else f"{least} to {most}"} of their pixels; --fit squash or --fit pad '
              f'keep all')


def report_unreadable(errors: Collection[str], n_readable: int, action: str, to: TextIO | None = None,
                      reported: Collection[str] = ()) -> None:
    """Print a line that names images that --skip_bad_images skips, except `reported`. Raises UserError if none is left.
    """
    if errors and not n_readable:
        raise UserError(f'--skip_bad_images: none of the {len(errors)} images can be read; the first is {min(errors)}')
    errors = sorted(error for error in errors if error not in reported)
    if errors:
        more = f'; and {len(errors) - MOST_NAMED} more' if len(errors) > MOST_NAMED else ''
        images = counted(len(errors), 'unreadable image')
        print(f'{images} {action}: {printable("; ".join(errors[:MOST_NAMED]))}{more}', file=to)
