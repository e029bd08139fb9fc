"""Image files as RGB, whatever they were written as."""
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from helper.errors import UserError

# A palette with transparency, a corrupt EXIF block: the image is read all the same.
warnings.filterwarnings('ignore', module='PIL')


def read_rgb(path: str | Path, file=None) -> Image.Image:
    """The image at `path`, or in the open `file` of that name, as 8-bit RGB: greyscale, palette, CMYK and 16-bit too.

    Raises UserError that names it.
    """
    try:
        with Image.open(file or path) as image:
            if image.mode.startswith('I'):      # 16-bit greyscale: convert() would clip it to white
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            return image.convert('RGB')
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f'{path}: not a readable image ({" ".join(str(error).split())})') from error
