"""Image files as RGB, whatever they were written as."""
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from helper.errors import UserError, reason
from helper.files import open_regular

# A palette with transparency, a corrupt EXIF block: the image is read all the same.
warnings.filterwarnings('ignore', module='PIL')

# What an image may be, whatever its name says: Pillow would start other programs for some of the others.
FORMATS = ('JPEG', 'PNG', 'GIF', 'PPM', 'BMP', 'TIFF', 'WEBP')


def read_rgb(path: str | Path, file=None) -> Image.Image:
    """The image at `path`, or in the open `file` of that name, as 8-bit RGB: greyscale, palette, CMYK and 16-bit too.

    Raises UserError that names it.
    """
    with file or open_regular(path, str(path)) as file:
        try:
            with Image.open(file, formats=FORMATS) as image:
                if image.mode.startswith('I'):      # 16-bit greyscale: convert() would clip it to white
                    image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
                return image.convert('RGB')
        except Exception as error:      # whatever a damaged file makes a decoder raise
            why = 'of no kind that is read here' if isinstance(error, UnidentifiedImageError) else reason(error)
            raise UserError(f'{path}: not a readable image ({why})') from error
