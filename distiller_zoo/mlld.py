"""The method mlld; its loss is in criteria/mlld.py."""
from .base import Distiller, Spec, in_float32
from .criteria.mlld import MLLDLoss
from .multi_view import MultiView


class MLLDDistiller(MultiView, Distiller):
    """Soft labels, and relations between images and between classes, on a weak and a strong view."""

    spec = Spec(
        title='MLLD', paper='Jin, Wang and Lin, CVPR 2023', uses='logits of two views',
        published={'gamma': 0.1, 'alpha': 0.0, 'beta': 0.9},
        published_imagenet={'gamma': 0.5, 'beta': 0.5, 'kd_T': 1.0},
        published_logit_stand={'gamma': 0.1, 'beta': 9.0, 'kd_T': 2.0},
        published_entropy_weights={'entropy_bound': 'log'}, views=('weak', 'strong'), pairwise=True, reads_kd_T=True)

    @classmethod
    def published_options(cls, opt):
        options = super().published_options(opt)
        return {**options, 'beta': 4.0} if opt.entropy_weights and opt.logit_stand else options

    def build(self, opt, data, shapes_s, shapes_t):
        # It has several temperatures and views, so it standardises and weights by itself.
        weights = self.entropy_weights
        self.criterion = MLLDLoss(opt.kd_T, opt.logit_stand, weights.is_used, weights.temperature, weights.bound)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        (weak_s, strong_s), (weak_t, strong_t) = out_s, out_t
        return self.criterion(weak_s.logits, weak_t.logits, strong_s.logits, strong_t.logits)
