"""Augmentation beyond crop and flip: the strong view and --aa of an image; --reprob, --mixup, --cutmix of a batch."""
import contextlib
import random
import re

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from helper.errors import UserError, reason

GREY = 127
VIEWS = ('weak', 'strong')      # weak: the data set's usual crop and flip, and --aa; strong: crop, flip and Strong


class Strong:
    """uint8 (3, H, W) -> the same: two of 14 operations of random strength, then a grey square of up to half the side.

    RandAugment (Cubuk et al., 2020, arXiv:1909.13719) with a strength drawn for each operation, and Cutout (DeVries and
    Taylor, 2017, arXiv:1708.04552), as FixMatch combines them (Sohn et al., NeurIPS 2020, arXiv:2001.07685). All random
    numbers come from torch's CPU generator.
    """

    strengths = 31

    def __init__(self):
        from torchvision.transforms import v2
        self.operation = v2.RandAugment(num_ops=1, num_magnitude_bins=self.strengths)

    def __call__(self, image: Tensor) -> Tensor:
        for _ in range(2):
            self.operation.magnitude = int(torch.randint(self.strengths, ()))
            image = self.operation(image)
        return cutout(image)


def cutout(image: Tensor) -> Tensor:
    """A copy with a grey square around a random point, at most half the side and cut off at the edges."""
    height, width = image.shape[-2:]
    share, y, x = torch.rand(3).tolist()
    half, y, x = share * min(height, width) / 4, y * height, x * width
    image = image.clone()
    image[..., max(0, round(y - half)):round(y + half), max(0, round(x - half)):round(x + half)] = GREY
    return image


# Kind of --aa policy -> key -> (smallest, largest) number; integer bounds take only whole numbers.
STRENGTH_NOISE = {'mstd': (0.0, 1000.0)}
POLICIES = {
    'rand': {'m': (0, 100), 'n': (1, 10), 'p': (0.001, 1.0), 'mmax': (1, 100), 'inc': (0, 1), **STRENGTH_NOISE},
    'augmix': {'m': (0, 100), 'w': (1, 10), 'd': (1, 10), 'a': (0.5, 100.0), 'b': (0, 1), **STRENGTH_NOISE},
    **dict.fromkeys(('original', 'originalr', 'v0', 'v0r', '3a'), STRENGTH_NOISE)}
OPERATION_SETS = ('tweights', 't3a', 't3aw')        # words of 'rand' alone: the operations it draws from
EXAMPLES = 'give rand-m9-mstd0.5-inc1, original or augmix-m3-w3'


def check_policy(policy: str) -> None:
    """Raise UserError unless `policy` is a policy of timm that works on every image, as rand-m9-mstd0.5-inc1."""
    def refuse(why):
        raise UserError(f'--aa {policy or repr(policy)}: {why}; {EXAMPLES}')
    kind, *words = policy.split('-')
    if kind not in POLICIES:
        refuse(f'timm has {", ".join(POLICIES)}')
    keys = set()
    for word in words:
        match = re.fullmatch(r'([a-z]+)(\d{1,9}(?:\.\d{1,9})?)', word)
        key = 't' if kind == 'rand' and word in OPERATION_SETS else match and match[1]
        if key in keys:
            refuse(f'{key} is there twice')
        keys.add(key)
        if key == 't':
            continue
        if key not in POLICIES[kind]:
            refuse(f'{word or "an empty word"}: {kind} takes {", ".join(POLICIES[kind])}, each with a number'
                   + (f', and {", ".join(OPERATION_SETS)}' if kind == 'rand' else ''))
        low, high = POLICIES[kind][key]
        whole = isinstance(low, int)
        if (whole and '.' in match[2]) or not low <= float(match[2]) <= high:
            refuse(f'{word}: {key} is a {"whole " if whole else ""}number from {low:g} to {high:g}')


class AutoAugment:
    """--aa: timm's RandAugment, AutoAugment or AugMix of an RGB image.

    policy: in timm's words, as rand-m9-mstd0.5-inc1 (Cubuk et al., 2020, arXiv:1909.13719). size: pixels. mean: of the
    colours, which fills empty areas. A seed from torch's generator decides all random numbers. Raises UserError.
    """

    def __init__(self, policy: str, size: int, mean: tuple):
        check_policy(policy)
        from timm.data import auto_augment
        make = {'rand': auto_augment.rand_augment_transform, 'augmix': auto_augment.augment_and_mix_transform}.get(
            policy.partition('-')[0], auto_augment.auto_augment_transform)
        settings = {'translate_const': int(size * 0.45), 'img_mean': tuple(min(255, round(255 * m)) for m in mean)}
        try:
            self.transform = make(policy, settings)
        except (AssertionError, ValueError, KeyError, TypeError) as error:
            raise UserError(f'--aa {policy}: this timm does not know it ({reason(error)}); {EXAMPLES}') from error
        operations = getattr(self.transform, 'ops', None) or [op for pair in self.transform.policy for op in pair]
        for operation in operations:
            if operation.name.startswith('Posterize'):
                operation.aug_fn = posterize

    def __call__(self, image: Image.Image) -> Image.Image:
        states = random.getstate(), np.random.get_state()
        seed = int(torch.randint(2**31, ()))
        random.seed(seed)
        np.random.seed(seed)
        try:
            return self.transform(image)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])

    def augment_tensor(self, image: Tensor) -> Tensor:
        """The same for uint8 (3, H, W)."""
        augmented = self(Image.fromarray(image.permute(1, 2, 0).cpu().numpy()))
        return torch.from_numpy(np.array(augmented)).permute(2, 0, 1).to(image.device)


def posterize(image: Image.Image, bits: int, **_) -> Image.Image:
    """The image with only the highest `bits` of each colour; black for 0 bits, which Pillow 13 refuses."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


class BatchAugment:
    """A training loader whose batches pass timm's RandomErasing, then its Mixup.

    Random erasing (Zhong et al., AAAI 2020, arXiv:1708.04896) fills a rectangle of some images with noise. Mixup (Zhang
    et al., ICLR 2018, arXiv:1710.09412) and CutMix (Yun et al., ICCV 2019, arXiv:1905.04899) combine two images; with
    both flags, each batch uses one of them. The target becomes the shares of the classes (B, classes), smoothed by
    --smoothing. The random numbers are the process's own: Python's, NumPy's and torch's; with --cache_epochs they are
    seeded for each batch.
    """

    def __init__(self, loader, opt, num_classes: int, device):
        self.loader, self.device, self.erase, self.mix = loader, device, None, None
        self.repeats = bool(getattr(opt, 'cache_epochs', None))
        if opt.reprob:
            from timm.data.random_erasing import RandomErasing
            self.erase = RandomErasing(opt.reprob, mode='pixel', device=device)
        if mixes(opt):
            from timm.data import Mixup
            if opt.batch_size % 2:
                raise UserError(f'--batch_size {opt.batch_size}: --mixup and --cutmix mix images in pairs; give each '
                                f'process an even number')
            self.mix = Mixup(opt.mixup, opt.cutmix, label_smoothing=opt.smoothing, num_classes=num_classes)

    def __getattr__(self, name):        # order, batch_size, n_samples
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return (batch for batch, _ in self._augmented((batch, None) for batch in self.loader))

    def batches_with_slots(self):
        """Yield (batch, slots int64 on the CPU), see teacher_cache/layout.py."""
        return self._augmented(self.loader.batches_with_slots())

    def _augmented(self, batches):
        first = self.order.first_batch if self.repeats else 0
        for number, (batch, slots) in enumerate(batches, first):
            with seeded_everywhere(self.order.batch_seed(number), self.device) if self.repeats \
                    else contextlib.nullcontext():
                batch = self._augment(*batch)
            yield batch, slots

    def _augment(self, images, target, index):
        if self.erase:
            images = self.erase(images.flatten(0, -4)).view_as(images)      # of every view
        if self.mix:
            images, target = self.mix(images, target)
        return images, target, index


def mixes(opt) -> bool:
    """Whether the options ask for mixed images."""
    return bool(opt.mixup or opt.cutmix)


@contextlib.contextmanager
def seeded(seed: int):
    """Seed torch's CPU generator within the block; its state is restored afterwards."""
    generator = torch.default_generator     # torch.manual_seed would take a millisecond to seed the GPUs
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


@contextlib.contextmanager
def seeded_everywhere(seed: int, device: torch.device):
    """Seed Python, NumPy and torch on the CPU and `device` within the block; their states are restored afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
