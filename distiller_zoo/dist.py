"""The method dist; its loss is in criteria/dist.py."""
from helper.cli import number

from .base import Distiller, Spec, in_float32
from .criteria.dist import DISTLoss


class DISTDistiller(Distiller):
    spec = Spec(
        title='DIST', paper='Huang et al., NeurIPS 2022, arXiv:2205.10536', uses='logits',
        published={'alpha': 0.0, 'beta': 2.0, 'kd_T': 4.0}, published_imagenet={'kd_T': 1.0}, pairwise=True,
        reads_kd_T=True)

    @classmethod
    def add_arguments(cls, add):
        add('--dist_beta', type=number(float, low=0), default=1.0, help='weight of the relations within an image')
        add('--dist_gamma', type=number(float, low=0), default=1.0, help='weight of the relations within a class')

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = DISTLoss(opt.dist_beta, opt.dist_gamma, opt.kd_T)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.logits, out_t.logits)
