"""How a net preprocesses images: checked in a checkpoint, and converted from the data's preprocessing."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.errors import UserError, reason

INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic')
FITS = ('crop', 'squash', 'pad')        # of --fit, see dataset.crop.resize_to_square
LEAST_CROP = 0.1        # of crop_pct: a test image is the centre of an image whose shorter side is size / crop_pct


def check_inputs(inputs, label: str) -> dict:
    """'inputs' of an untrusted checkpoint, checked and complete. Raises UserError that begins with `label`."""
    def is_colour(values, low):
        return isinstance(values, (list, tuple)) and len(values) == 3 and \
            all(isinstance(v, int | float) and math.isfinite(v) and v > low for v in values)
    given = inputs if isinstance(inputs, dict) else {}
    mean, std, size, interpolation = map(given.get, ('mean', 'std', 'size', 'interpolation'))
    fit, crop_pct = given.get('fit', FITS[0]), given.get('crop_pct')
    crop_pct = 1.0 if crop_pct is None else crop_pct
    if not is_colour(mean, -math.inf) or not is_colour(std, 0) or type(size) is not int or not 0 < size < 10**4 \
            or interpolation not in INTERPOLATIONS or fit not in FITS:
        raise UserError(f'{label}: does not say how its net preprocesses images; needed are mean and std of three '
                        f'colours, size and interpolation, one of {", ".join(INTERPOLATIONS)}; found '
                        f'{reason(ValueError(given))}')
    if not isinstance(crop_pct, int | float) or not LEAST_CROP <= crop_pct <= 1:
        raise UserError(f'{label}: its net has crop_pct {reason(ValueError(crop_pct))}; wanted is a number from '
                        f'{LEAST_CROP} to 1')
    return {'mean': [float(v) for v in mean], 'std': [float(v) for v in std], 'size': size,
            'interpolation': interpolation, 'fit': fit, 'crop_pct': float(crop_pct)}


def check_parts(inputs: dict, label: str) -> dict:
    """As check_inputs, but only the known parts: others may be missing or None."""
    if not isinstance(inputs, dict):
        return check_inputs(inputs, label)      # which raises
    known = {key: value for key, value in inputs.items() if value is not None}
    checked = check_inputs({'mean': [0, 0, 0], 'std': [1, 1, 1], 'size': 32, 'interpolation': 'bilinear', **known},
                           label)
    return {key: value for key, value in checked.items() if key in known}


class Inputs(nn.Module):
    """Images (N, 3, H, W) as the loader preprocesses them -> (N, 3, S, S) as the net was trained on, on the device.

    given, wanted: 'mean' and 'std' of the colours, for pixels from 0 to 1. wanted also has 'size' and 'interpolation'.
    """

    def __init__(self, given: dict, wanted: dict):
        super().__init__()
        mean_g, std_g, mean_w, std_w = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
                                        for values in (given['mean'], given['std'], wanted['mean'], wanted['std']))
        self.register_buffer('scale', (std_g / std_w).float(), persistent=False)
        self.register_buffer('shift', ((mean_g - mean_w) / std_w).float(), persistent=False)
        self.size, self.mode = wanted['size'], wanted['interpolation']
        given, wanted = ({key: value for key, value in inputs.items() if key not in ('fit', 'crop_pct')}
                         for inputs in (given, wanted))
        self.words = f'{given} -> {wanted}'

    def extra_repr(self):
        return self.words       # the teacher cache's checksum includes it

    def forward(self, images):
        images = images * self.scale + self.shift
        if images.shape[-1] == self.size:
            return images
        return F.interpolate(images, self.size, mode=self.mode, antialias=self.mode != 'nearest')


def to_grey(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W), with Pillow's weights of red, green and blue."""
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
