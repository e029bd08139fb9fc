"""Read an image file of any usual format, colour mode and bit depth as an upright 8-bit RGB image."""
import contextlib
import logging
import re
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from helper.errors import UserError, reason
from helper.files import open_regular

# Pillow warns of transparency in a palette and of a corrupt EXIF block, but reads the image; it logs damage, and then
# raises an exception.
warnings.filterwarnings('ignore', module='PIL')
logging.getLogger('PIL').setLevel(logging.CRITICAL)

HEIF = '.heic', '.heics', '.heif', '.heifs', '.hif'     # photographs of phones; read if pillow-heif is installed

# The formats that are read, whatever the file name, and their extensions. Pillow's other formats are left out: for some
# it would start external programs, others are hardly ever used for photographs.
FORMATS = {
    'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo'),
    'PNG': ('.png', '.apng'),
    'GIF': ('.gif',),
    'PPM': ('.ppm', '.pgm', '.pbm', '.pnm', '.pfm'),
    'BMP': ('.bmp',),
    'TIFF': ('.tif', '.tiff'),
    'WEBP': ('.webp',),
    'AVIF': ('.avif', '.avifs'),
    **({'HEIF': HEIF} if find_spec('pillow_heif') else {}),
    'JPEG2000': ('.jp2', '.j2k', '.jpc', '.jpf', '.jpx', '.j2c'),
    'QOI': ('.qoi',),
    'SGI': ('.sgi', '.rgb', '.rgba', '.bw'),
    'ICO': ('.ico',),
    'PCX': ('.pcx',),
    'TGA': ('.tga', '.icb', '.vda', '.vst'),    # the last, because these files have no signature
}
EXTENSIONS = tuple(ending for endings in FORMATS.values() for ending in endings)

MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS     # Pillow's default limit

BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0      # tags of a TIFF file


def read_rgb(path: str | Path, file=None, formats: Iterable[str] = FORMATS) -> Image.Image:
    """The image at `path`, or in the open `file` of that name: upright, as 8-bit RGB; of several frames the first.

    Raises UserError for an image that cannot be read, has another format, or more pixels than limit_pixels allows.
    """
    _register_formats()
    formats = [name for name in formats if name in Image.OPEN]       # AVIF came with Pillow 11.2
    with file or open_regular(path, str(path)) as file:
        try:
            with Image.open(file, formats=formats) as image:
                image.load()
                if image.format != 'TIFF':      # Pillow has rotated it already
                    with contextlib.suppress(Exception):        # whatever a damaged EXIF block makes Pillow raise
                        ImageOps.exif_transpose(image, in_place=True)
                return _without_alpha(_eight_bits(image))
        except Image.DecompressionBombError as error:
            pixels = re.search(r'\d+', str(error))[0]
            raise UserError(f'{path}: has {pixels} pixels, and --max_pixels allows {2 * Image.MAX_IMAGE_PIXELS:.0f}; '
                            f'give --max_pixels {pixels} if the file can be trusted') from error
        except Exception as error:      # whatever a damaged file makes a decoder raise
            is_unknown = isinstance(error, UnidentifiedImageError)
            why = 'not JPEG, PNG or another format that is read' if is_unknown else reason(error)
            if is_unknown and 'HEIF' not in FORMATS and str(path).lower().endswith(HEIF):
                why = 'pip install pillow-heif to read it'
            raise UserError(f'{path}: not a readable image ({why})') from error


def _register_formats():
    """Make all formats known to Pillow in this process."""
    Image.init()
    if 'HEIF' in FORMATS and 'HEIF' not in Image.OPEN:
        import pillow_heif
        pillow_heif.register_heif_opener()


def limit_pixels(most: int) -> None:
    """Make read_rgb refuse larger images in this process: a small file can decode to one that fills the memory."""
    Image.MAX_IMAGE_PIXELS = most / 2       # Pillow warns above this limit, and refuses images above twice the limit


def _without_alpha(image):
    """The image as RGB, without its transparency: transparent pixels get the colours that are stored for them.

    A drawing in a single colour would become blank, so it is put on white, or on black if the colour is light.
    """
    if image.mode in ('LA', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info:
        drawing = image.convert('RGBA')
        *colours, alpha = drawing.getextrema()      # (smallest, largest) value of each
        if all(low == high for low, high in colours) and alpha[0] < alpha[1]:
            grey = 255 if sum(low for low, _ in colours) < 3 * 128 else 0
            image = Image.alpha_composite(Image.new('RGBA', image.size, (grey, grey, grey, 255)), drawing)
    return image.convert('RGB')


def _eight_bits(image):
    """The image with 8-bit values: convert() would clip larger ones.

    In 16 bits white is 65535, as the formats define. No format defines white for 32 bits: for integers it is 255 if no
    value is larger, otherwise 65535; for floats 1 if no value is larger, otherwise 255. Raises ValueError for values
    outside these ranges, and for 16-bit images that would become black.
    """
    if image.mode[0] not in 'IF':
        return image
    values, tags = np.asarray(image), getattr(image, 'tag_v2', {})
    low, high, is_float = values.min(), values.max(), image.mode == 'F'
    if not low >= 0 or not high <= (255 if is_float else 65535):        # with `not`, NaN is refused too
        raise ValueError(f'its values are {low:g} to {high:g}; save it with 8 bits, or with values from 0 to '
                         f'{"1 or 255" if is_float else "255 or 65535"}')
    if is_float:
        values = np.rint(values * (255 if high <= 1 else 1))
    elif image.mode != 'I' or image.format in ('PNG', 'PPM'):       # 16 bits, or 12
        shift = 4 if tags.get(BITS) == (12,) else 8
        values = values >> shift
        if high and not values.any():
            raise ValueError(f'its largest value is {high} of {(256 << shift) - 1}, so it would become black; save it '
                             f'with 8 bits')
    elif high > 255:
        values = values >> 8
    values = values.astype(np.uint8)
    return Image.fromarray(255 - values if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else values)
