"""--reprob, --mixup and --cutmix: timm's augmentation of a whole batch on the training device."""
from helper.errors import UserError


class BatchAugment:
    """A training loader whose batches pass timm's RandomErasing, then its Mixup.

    Random erasing (Zhong et al., AAAI 2020, arXiv:1708.04896) fills a rectangle of some images with noise. Mixup (Zhang
    et al., ICLR 2018, arXiv:1710.09412) and CutMix (Yun et al., ICCV 2019, arXiv:1905.04899) combine two images; with
    both flags, each batch uses one of them. The target becomes the shares of the classes (B, classes), smoothed by
    --smoothing. The random numbers are the process's own: Python's, NumPy's and torch's.
    """

    def __init__(self, loader, opt, num_classes: int, device):
        self.loader, self.erase, self.mix = loader, None, None
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
        for images, target, index in self.loader:
            if self.erase:
                images = self.erase(images.flatten(0, -4)).view_as(images)      # of every view
            if self.mix:
                images, target = self.mix(images, target)
            yield images, target, index


def mixes(opt) -> bool:
    """Whether the options ask for mixed images."""
    return bool(opt.mixup or opt.cutmix)
