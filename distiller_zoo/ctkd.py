"""The method ctkd; its loss is in criteria/ctkd.py."""
import torch

from helper.cli import number

from .base import Spec
from .criteria.ctkd import GlobalTemperature, reversal_strength
from .dkd import OPTIONS, DKDDistiller


class CTKDDistiller(DKDDistiller):
    """Li et al., AAAI 2023, Curriculum Temperature for Knowledge Distillation, arXiv:2211.16231; the global version.

    The loss is the soft-label loss or dkd's, at a learnt temperature instead of --kd_T.
    """

    spec = Spec(
        title='CTKD', paper='Li et al., AAAI 2023, arXiv:2211.16231', uses='logits',
        published={'gamma': 0.1, 'alpha': 0.9, 'beta': 0.0, 'ctkd_loops': 10},
        published_imagenet={'gamma': 1.0, 'alpha': 1.0, 'ctkd_loops': 5}, published_logit_stand={'alpha': 9.0},
        needs_class=True, learns_temperature=True)

    @classmethod
    def add_arguments(cls, add):
        super().add_arguments(add)
        add('--ctkd_base', choices=('kd', 'dkd'), default='kd', help='the loss whose temperature is learnt')
        add('--ctkd_loops', type=number(int, low=1, high=10**6),
            help='epochs until the temperature learns at full strength; not given: 10, for ImageNet 5')

    @classmethod
    def options_without_effect(cls, opt):
        return {} if opt.ctkd_base == 'dkd' else dict.fromkeys(OPTIONS, '--ctkd_base dkd')

    @classmethod
    def published_options(cls, opt):
        usual = super().published_options(opt)
        if opt.ctkd_base == 'dkd':
            return {**usual, **DKDDistiller.published_options(opt)}
        return usual

    @classmethod
    def has_method_loss(cls, opt):
        return opt.ctkd_base == 'dkd'

    def build(self, opt, data, shapes_s, shapes_t):
        super().build(opt, data, shapes_s, shapes_t)
        self.base, self.loops = opt.ctkd_base, opt.ctkd_loops
        self.global_temperature = GlobalTemperature()
        self.register_buffer('strength', torch.zeros(()), persistent=False)     # set by begin_epoch

    def begin_epoch(self, epoch, epochs):
        super().begin_epoch(epoch, epochs)
        self.strength.fill_(reversal_strength(epoch, self.loops))

    def soft_labels(self, out_s, out_t):
        logits_s, logits_t, _ = super().soft_labels(out_s, out_t)
        return logits_s, logits_t, self.global_temperature(self.strength)
