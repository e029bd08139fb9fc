"""The method rld; its loss is in criteria/rld.py."""
from helper.cli import number

from .base import Distiller, Spec, in_float32
from .criteria.rld import RLDLoss


class RLDDistiller(Distiller):
    spec = Spec(
        title='RLD', paper='Sun et al., ICCV 2025, arXiv:2408.07703', uses='logits',
        published={'alpha': 0.0, 'beta': 1.0, 'kd_T': 4.0, 'loss_warmup_epochs': 20, 'rld_beta': 8.0},
        published_imagenet={'kd_T': 1.0, 'loss_warmup_epochs': 1, 'rld_beta': 0.5}, needs_class=True, reads_kd_T=True)

    @classmethod
    def add_arguments(cls, add):
        add('--rld_alpha', type=number(float, low=0), default=1.0, help='weight of the confidence')
        add('--rld_beta', type=number(float, low=0),
            help='weight of the classes below the true one; not given: 8, for ImageNet 0.5')
        add('--rld_alpha_T', type=number(float, above=0, high=1e4), default=1.0, help='temperature of the confidence')

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = RLDLoss(opt.rld_alpha, opt.rld_beta, opt.kd_T, opt.rld_alpha_T)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.logits, out_t.logits, target)
