"""The method dkd; its loss is in criteria/dkd.py."""
from helper.cli import number

from .base import Distiller, Spec, in_float32, is_imagenet
from .criteria.dkd import dkd_loss

OPTIONS = ('dkd_alpha', 'dkd_beta')


class DKDDistiller(Distiller):
    """The DKD loss replaces the soft labels, so alpha is 0 unless -a is given; --dkd_alpha and --dkd_beta weight its
    terms."""

    spec = Spec(
        title='DKD', paper='Zhao et al., CVPR 2022, arXiv:2203.08679', uses='logits',
        published={'alpha': 0.0, 'beta': 1.0, 'loss_warmup_epochs': 20, 'dkd_beta': 8.0},
        published_imagenet={'kd_T': 1.0, 'loss_warmup_epochs': 1, 'dkd_beta': 0.5},
        published_logit_stand={'beta': 9.0, 'kd_T': 2.0}, published_entropy_weights={'entropy_bound': 'classes'},
        needs_class=True, reads_kd_T=True)

    @classmethod
    def add_arguments(cls, add):
        add('--dkd_alpha', type=number(float, low=0), default=1.0, help='weight of the true class in dkd')
        add('--dkd_beta', type=number(float, low=0),
            help='weight of the other classes in dkd; not given: 8, for ImageNet 0.5')

    @classmethod
    def published_options(cls, opt):
        options = super().published_options(opt)
        if opt.entropy_weights and is_imagenet(opt):
            options |= {'entropy_bound': 'log', **({'beta': 2.0, 'kd_T': 1.0} if opt.logit_stand else {})}
        return options

    def build(self, opt, data, shapes_s, shapes_t):
        self.dkd_alpha, self.dkd_beta = opt.dkd_alpha, opt.dkd_beta

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        logits_s, logits_t, temperature = self.soft_labels(out_s, out_t)
        return dkd_loss(logits_s, logits_t, target, self.dkd_alpha, self.dkd_beta, temperature,
                        self.entropy_weights(logits_s, logits_t))
