"""Checksums of images, which tell whether two runs have the same data."""
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

from helper.errors import UserError
from helper.files import open_regular

SAMPLE = 1000       # files of a split whose content counts, evenly spaced


def tensor_checksum(images: torch.Tensor) -> int:
    """CRC-32 of all pixels of uint8 images (N, 3, H, W)."""
    return zlib.crc32(images.contiguous().numpy())


def file_checksum(entries: Iterable[str], content: Callable[[int], bytes], n: int) -> int:
    """CRC-32 of a split of n image files: of all entries, and of the content of at most SAMPLE files.

    entries: a line for each file with its name and size, if known. content(i): the bytes of file i, empty if it cannot
    be read.
    """
    crc = zlib.crc32('\n'.join(entries).encode(errors='surrogateescape'))
    for i in range(0, n, -(-n // SAMPLE) or 1):
        crc = zlib.crc32(content(i), crc)
    return crc


def joint_checksum(train: int, test: int) -> int:
    """CRC-32 of a data set, from the checksums of its training and test images."""
    return zlib.crc32(f'{train} {test}'.encode())


def file_sizes(files: list[str]) -> list[int]:
    """The size of each file in bytes; -1 for one that cannot be read, as a broken link."""
    def sizes(part):
        return [_size(file) for file in part]

    parts = [files[i:i + 1000] for i in range(0, len(files), 1000)]
    with ThreadPoolExecutor() as pool:      # on a network's disk a size takes a while
        return [size for found in pool.map(sizes, parts) for size in found]


def _size(file):
    try:
        return os.path.getsize(file)
    except OSError:
        return -1


def file_content(file: str) -> bytes:
    """All bytes of a file; empty if it cannot be read."""
    try:
        with open_regular(file, file) as opened:
            return opened.read()
    except (UserError, OSError):
        return b''
