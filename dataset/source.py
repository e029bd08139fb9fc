"""Sources: the images of one split, read one at a time, and checksums that tell whether two runs have the same data."""
import contextlib
import functools
import io
import zlib
from collections.abc import Container, Iterable, Sequence

import numpy as np
import torch
from PIL import Image

from helper.errors import UserError
from helper.files import open_regular

from .image import read_rgb
from .jpeg import open_rgb

SAMPLE = 1000       # evenly spaced files of a split whose content counts for its checksum
# The usual names of the split that is measured; the first that is present is used.
TEST_SPLITS = ('test', 'validation', 'valid', 'val')
VAL_SPLITS = TEST_SPLITS[1:]    # names of a validation split beside a split `test`


class SourceError(UserError):
    """A source cannot be read any further, so --skip_bad_images does not help."""


class Source:
    """The images of one split, by number. A subclass has `labels` int64 (N,), `name` and `names`, and defines
    content(). shards: int64 (N,), the file of each image if a file holds many; see dataset.order.shuffle_shards."""

    labels: torch.Tensor
    shards: torch.Tensor | None = None
    name: str = ''
    names: Sequence[str]

    def content(self, i: int) -> tuple[str, bytes]:
        """(name for error messages, bytes of the image file) of image i. Raises UserError if it cannot be read."""
        raise NotImplementedError

    def entries(self) -> Iterable[str]:
        """A line for each image file with its name and size, for the checksum; empty if they are unknown."""
        return ()

    def read(self, i: int) -> Image.Image:
        """Image i as RGB. Raises UserError that names it."""
        name, data = self.content(i)
        return read_rgb(name, io.BytesIO(data))

    def open(self, i: int):
        """Image i for jpeg.resize_box(), which decodes only what it needs. Raises UserError that names the image."""
        return open_rgb(*self.content(i))

    def checksum(self) -> int:
        """CRC-32 of all entries, and of the content of at most SAMPLE readable files. Computed once."""
        return self._checksum

    @functools.cached_property
    def _checksum(self):
        crc = zlib.crc32('\n'.join(self.entries()).encode(errors='surrogateescape'))
        for i in sample_indices(self, SAMPLE):
            with contextlib.suppress(UserError, OSError):
                crc = zlib.crc32(self.content(i)[1], crc)
        return crc


class Subset:
    """The images of a source with these indices."""

    def __init__(self, source: 'Source | Subset', indices: Sequence[int]):
        self.source, self.indices, self.labels = source, indices, source.labels[list(indices)]
        self.shards = None if source.shards is None else source.shards[list(indices)]
        self.name = source.name

    @property
    def names(self) -> list[str]:
        """The names of these images."""
        names = self.source.names
        return [names[i] for i in self.indices]

    def read(self, i: int) -> Image.Image:
        """Image i as RGB."""
        return self.source.read(self.indices[i])

    def open(self, i: int):
        """Image i for jpeg.resize_box()."""
        return self.source.open(self.indices[i])

    def checksum(self) -> int:
        """CRC-32 of the source and the indices."""
        return zlib.crc32(np.asarray(self.indices, np.int64), self.source.checksum())


def sample_indices(source: Source | Subset, count: int) -> range:
    """At most `count` images from which a fact about all is estimated: evenly spaced, of shards the first ones.

    Evenly spaced images would need many shards, which may have to be fetched.
    """
    n = len(source.labels)
    return range(0, n, -(-n // count) or 1) if source.shards is None else range(min(n, count))


def read_bytes(path: str) -> bytes:
    """The content of a file. Raises UserError if it cannot be read."""
    with open_regular(path, path) as file:
        return file.read()


def joint_checksum(*checksums: int) -> int:
    """CRC-32 of a data set, from the checksums of its training and test images, and of a split for validation."""
    return zlib.crc32(' '.join(map(str, checksums)).encode())


def val_split(test: str, present: Container[str]) -> str | None:
    """The name of the validation split: the first of VAL_SPLITS in `present`; None if the test split is one of them."""
    return None if test in VAL_SPLITS else next((name for name in VAL_SPLITS if name in present), None)
