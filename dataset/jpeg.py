"""Decode only the part of a JPEG file that a crop needs, at the smallest size that is enough."""
import contextlib
import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image

from .image import read_rgb
from .libturbojpeg import decode_region, libturbojpeg

END = b'\xff\xd9'       # the last bytes of a whole file
REDUCTIONS = (8, 4, 2)      # reduced sizes that a JPEG decoder supports: an eighth, a quarter, a half
GAP = 2     # smallest ratio of the sides of a part decoded at a reduced size to those of the result
TENSOR_MODES = {Image.Resampling.BILINEAR: 'bilinear', Image.Resampling.BICUBIC: 'bicubic'}
# EXIF orientations of stored images that become upright by a swap of rows and columns, and then by flips.
SWAPPED, FLIPPED_X, FLIPPED_Y = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)


def open_rgb(name: str, data: bytes):
    """The image in the bytes of a file, for resize_box(): a JpegImage, or for other formats an RGB image in memory.

    Raises UserError for an image that cannot be read.
    """
    if data.endswith(END):      # read_rgb refuses files that are cut short
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=['JPEG']) as header:
            if header.mode in ('L', 'RGB'):
                return JpegImage(name, data, header)
    return read_rgb(name, io.BytesIO(data))


def resize_box(image, size: tuple[int, int], resample: int, box: tuple | None = None) -> torch.Tensor:
    """The part `box` (left, top, right, bottom) of an image of open_rgb(), scaled to size (width, height).

    uint8 (3, height, width). Pixels outside the box have no influence. Raises UserError for a damaged file.
    """
    box = box or (0, 0, *image.size)
    if isinstance(image, JpegImage):
        return image.resize_box(size, resample, box)
    return _scale(np.array(image.crop(box)), size, resample)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class JpegImage:
    """A JPEG file that resize_box() decodes. size: (width, height) in pixels, upright. header: its Pillow image."""

    def __init__(self, name: str, data: bytes, header):
        self.name, self.data, self.stored_size = name, data, header.size
        self.orientation = header.getexif().get(ExifTags.Base.Orientation, 1)
        self.is_progressive = 'progressive' in header.info
        self.size = self.stored_size[::-1] if self.orientation in SWAPPED else self.stored_size

    def resize_box(self, size, resample, box):
        """The part `box`, scaled to `size`: see the function resize_box.

        A box of at least 2, 4 or 8 times GAP times `size` is decoded at a half, a quarter or an eighth.
        """
        limit = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]) / GAP
        reduction = next((reduction for reduction in REDUCTIONS if reduction <= limit and resample in TENSOR_MODES), 1)
        reduced = [edge / reduction for edge in self._stored_box(box)]
        left, top, right, bottom = *map(math.floor, reduced[:2]), *map(math.ceil, reduced[2:])
        try:
            pixels = self._decode((left, top, right, bottom), reduction)
        except OSError:     # read_rgb says what is wrong with the file
            return resize_box(read_rgb(self.name, io.BytesIO(self.data)), size, resample, box)
        inner = reduced[0] - left, reduced[1] - top, reduced[2] - left, reduced[3] - top
        return self._upright(_scale(pixels, size[::-1] if self.orientation in SWAPPED else size, resample, inner))

    def _stored_box(self, box):
        """`box` of the upright image, in the coordinates of the stored one."""
        (left, top, right, bottom), (width, height) = box, self.size
        if self.orientation in FLIPPED_X:
            left, right = width - right, width - left
        if self.orientation in FLIPPED_Y:
            top, bottom = height - bottom, height - top
        return (top, left, bottom, right) if self.orientation in SWAPPED else (left, top, right, bottom)

    def _upright(self, image):
        """The upright image of a stored one, (3, H, W)."""
        if self.orientation in SWAPPED:
            image = image.transpose(1, 2)
        if self.orientation in FLIPPED_X:
            image = image.flip(2)
        return image.flip(1) if self.orientation in FLIPPED_Y else image

    def _decode(self, box, reduction):
        """The pixels of `box`, uint8 (height, width, 3), of the stored image reduced by 1, 2, 4 or 8."""
        if (library := libturbojpeg()) and not self.is_progressive:
            return decode_region(library, self.data, self.stored_size, box, reduction)
        with Image.open(io.BytesIO(self.data), formats=['JPEG']) as image:
            if reduction > 1:
                image.draft(None, tuple(side // reduction for side in image.size))
            return np.array(image.crop(box).convert('RGB'))


def _scale(pixels, size, resample, box=None):
    """The part `box` of uint8 (H, W, 3), scaled to size (width, height): uint8 (3, height, width).

    torch scales several times faster than Pillow, and its values differ by at most 2. Pillow scales boxes whose edges
    lie within a pixel, which torch cannot.
    """
    if resample not in TENSOR_MODES or box and any(edge % 1 for edge in box):
        return to_tensor(Image.fromarray(pixels).resize(size, resample, box))
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    return F.interpolate(image, size[::-1], mode=TENSOR_MODES[resample], antialias=True)[0]
