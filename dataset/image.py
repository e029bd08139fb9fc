"""Read an image file as 8-bit RGB, whatever its colours and depth."""
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from helper.errors import UserError, reason
from helper.files import open_regular

# Pillow warns of transparency in a palette and of a corrupt EXIF block, but reads the image.
warnings.filterwarnings('ignore', module='PIL')

# The formats that are opened, whatever a file's name says: for some others Pillow would start external programs.
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
            why = f'not one of {", ".join(FORMATS)}' if isinstance(error, UnidentifiedImageError) else reason(error)
            raise UserError(f'{path}: not a readable image ({why})') from error
