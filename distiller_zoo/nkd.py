"""The method nkd; its loss is in criteria/nkd.py."""
from helper.cli import number

from .base import Distiller, Spec, in_float32
from .criteria.nkd import NKDLoss


class NKDDistiller(Distiller):
    spec = Spec(
        title='NKD', paper='Yang et al., ICCV 2023, arXiv:2303.13005', uses='logits',
        published={'alpha': 0.0, 'beta': 1.0, 'kd_T': 3.0, 'nkd_gamma': 3.5},
        published_imagenet={'kd_T': 1.0, 'nkd_gamma': 1.5}, needs_class=True, reads_kd_T=True)

    @classmethod
    def add_arguments(cls, add):
        add('--nkd_gamma', type=number(float, low=0),
            help='weight of the other classes; not given: 3.5, for ImageNet 1.5')

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = NKDLoss(opt.nkd_gamma, opt.kd_T)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.logits, out_t.logits, target)
