"""--mixup and --cutmix: two images of a batch become one, and so do their classes."""
from helper.errors import UserError


class MixedLoader:
    """A training loader whose images are mixed: (images, target (B, classes), index), by timm's Mixup.

    Mixup (Zhang et al., ICLR 2018, arXiv:1710.09412) and CutMix (Yun et al., ICCV 2019, arXiv:1905.04899); with both,
    one or the other for each batch. The target has the shares of the classes, with --smoothing. The random numbers
    are NumPy's.
    """

    def __init__(self, loader, opt, num_classes: int):
        from timm.data import Mixup
        if opt.batch_size % 2:
            raise UserError(f'--batch_size {opt.batch_size}: --mixup and --cutmix mix images in pairs; give an even '
                            f'number for each process')
        self.loader = loader
        self.mix = Mixup(opt.mixup, opt.cutmix, label_smoothing=opt.smoothing, num_classes=num_classes)

    def __getattr__(self, name):        # order, batch_size, n_samples
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for images, target, index in self.loader:
            yield (*self.mix(images, target), index)


def mixes(opt) -> bool:
    """Whether the options ask for it."""
    return bool(opt.mixup or opt.cutmix)
