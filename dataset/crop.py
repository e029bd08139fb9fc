"""Crop and scale an image to the square that a net takes: at random in training, always the same in a test."""
import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from .augment import AutoAugment, Strong
from .jpeg import resize_box, to_tensor
from .normalise import IMAGENET_MEAN, IMAGENET_STD
from .order import PAD

CROPS = ('padded', 'resized')       # of --crop
RESIZED_FROM = 64       # smallest image size in pixels whose default of --crop is resized
SIZE = 224              # pixels of ImageNet's images
CROP_PCT = 0.875        # 224 of 256 pixels
INTERPOLATION = 'bilinear'
# Flags of training images, with the values that timm and torchvision use.
DEFAULTS = {'scale': [0.08, 1.0], 'ratio': [3 / 4, 4 / 3], 'hflip': 0.5, 'vflip': 0.0, 'color_jitter': 0.0,
            'train_interpolation': 'bilinear'}
RESIZED_ONLY = ('scale', 'ratio', 'color_jitter', 'train_interpolation')      # have no effect on padded crops
STRIP = 20              # images of a larger aspect ratio are cropped before scaling, which could fill the memory
ATTEMPTS = 10           # to draw a crop that lies within the image
RESAMPLING = {'nearest': Image.Resampling.NEAREST, 'bilinear': Image.Resampling.BILINEAR,
              'bicubic': Image.Resampling.BICUBIC}


def draw_box(width: int, height: int, scale: tuple = DEFAULTS['scale'], ratio: tuple = DEFAULTS['ratio'],
             generator: torch.Generator | None = None) -> tuple[int, int, int, int]:
    """Draw a crop of an image: (left, top, right, bottom) in pixels.

    scale: range of the crop's share of the image area. ratio: range of its width divided by height. If ATTEMPTS crops
    do not lie within the image, the result is the largest centre crop of an allowed ratio. The distribution is that of
    torchvision's RandomResizedCrop (Szegedy et al., CVPR 2015, arXiv:1409.4842).
    """
    low, high = map(math.log, ratio)
    for _ in range(ATTEMPTS):
        # One call draws all numbers, because the overhead of a torch call exceeds this arithmetic.
        u_area, u_aspect, u_left, u_top = torch.rand(4, generator=generator).tolist()
        area = width * height * (scale[0] + u_area * (scale[1] - scale[0]))
        aspect = math.exp(low + u_aspect * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(u_left * (width - w + 1)), int(u_top * (height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < min(ratio):
        h = max(1, round(width / min(ratio)))
    elif width / height > max(ratio):
        w = max(1, round(height * max(ratio)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class RandomResizedCrop:
    """Image of Source.open() -> uint8 (3, size, size): a random crop. interpolation: 'random' draws one of two."""

    def __init__(self, size: int, scale: tuple, ratio: tuple, interpolation: str):
        self.size, self.scale, self.ratio, self.interpolation = size, scale, ratio, interpolation

    def __call__(self, image):
        box, interpolation = draw_box(*image.size, self.scale, self.ratio), self.interpolation
        if interpolation == 'random':
            interpolation = ('bilinear', 'bicubic')[torch.randint(2, (1,)).item()]
        return resize_box(image, (self.size, self.size), RESAMPLING[interpolation], box)


class RandomFlip:
    """Flip an image (3, H, W) along `dim` with this probability. It draws the same random number as torchvision's.

    torchvision's transform spends more time on the inspection of its arguments than on the flip.
    """

    def __init__(self, dim: int, probability: float):
        self.dim, self.probability = dim, probability

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image.flip(self.dim) if torch.rand(()).item() < self.probability else image


def resize_to_square(image: Image.Image, size: int, fit: str = 'crop', crop_pct: float = 1.0,
                     interpolation: str = 'bilinear') -> Image.Image:
    """The image scaled to size x size pixels. fit: of models.inputs.FITS, for oblong images.

    crop: scale the centre square; with crop_pct below 1, scale the shorter side to size / crop_pct and take the centre,
    as torchvision's Resize and CenterCrop do. squash: scale both sides. pad: scale the longer side, and add black.
    """
    method = RESAMPLING[interpolation]
    if fit == 'squash':
        return image.resize((size, size), method)
    if fit == 'pad':        # ImageOps.pad places some images one pixel away
        scaled = [max(1, round(side * size / max(image.size))) for side in image.size]
        square = Image.new('RGB', (size, size))
        square.paste(image.resize(scaled, method), [(size - side) // 2 for side in scaled])
        return square
    if crop_pct == 1 or max(image.size) > STRIP * min(image.size):
        return ImageOps.fit(image, (size, size), method, bleed=(1 - crop_pct) / 2)
    width, height = (round(size / crop_pct) * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), method).crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class Pipeline:
    """The preprocessing of images. mean, std: see models.inputs. The other fields are the values of their flags."""

    size: int = SIZE
    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD
    fit: str = 'crop'
    crop_pct: float = CROP_PCT
    interpolation: str = 'bilinear'
    crop: str = 'resized'
    scale: tuple = tuple(DEFAULTS['scale'])
    ratio: tuple = tuple(DEFAULTS['ratio'])
    hflip: float = DEFAULTS['hflip']
    vflip: float = DEFAULTS['vflip']
    color_jitter: float = DEFAULTS['color_jitter']
    train_interpolation: str = DEFAULTS['train_interpolation']

    def square(self, image: Image.Image) -> Image.Image:
        """The test image (size, size)."""
        return resize_to_square(image, self.size, self.fit, self.crop_pct, self.interpolation)

    def transform(self, train: bool, aa: str | None = None, view: str = 'weak'):
        """RGB image -> uint8 (size, size, 3). view: in training, of augment.VIEWS; --color_jitter and --aa augment the
        weak one. For crops of random size in training, the image may be one of Source.open()."""
        from torchvision.transforms import v2
        if not train:
            return v2.Compose([self.square, np.array, torch.from_numpy])
        if self.crop == 'resized':
            steps = [RandomResizedCrop(self.size, self.scale, self.ratio, self.train_interpolation)]
        else:
            steps = [self.square, v2.RandomCrop(self.size, padding=PAD), to_tensor]
        steps.append(RandomFlip(2, self.hflip))
        steps += [RandomFlip(1, self.vflip)] if self.vflip else []
        if view == 'strong':
            steps.append(Strong())
        else:
            steps += [v2.ColorJitter(*[self.color_jitter] * 3)] if self.color_jitter else []
            steps += [AutoAugment(aa, self.size, self.mean).augment_tensor] if aa else []
        return v2.Compose([*steps, functools.partial(torch.permute, dims=(1, 2, 0))])
