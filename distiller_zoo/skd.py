"""The method skd; its loss is in criteria/skd.py."""
from helper.cli import number

from .base import Distiller, Spec, in_float32
from .criteria.skd import SKDLoss


class SKDDistiller(Distiller):
    spec = Spec(
        title='SKD', paper='Jeong et al., CVPR 2026', uses='logits',
        published={'gamma': 0.1, 'alpha': 0.0, 'beta': 0.9}, published_imagenet={'kd_T': 1.0}, pairwise=True,
        reads_kd_T=True)

    @classmethod
    def add_arguments(cls, add):
        add('--skd_tikhonov', type=number(float, low=1e-6), default=0.1, help='added to the diagonal of the covariance')

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = SKDLoss(opt.kd_T, opt.skd_tikhonov)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.logits, out_t.logits)
