"""The method abkd; its loss is in criteria/abkd.py."""
from helper.cli import number
from helper.errors import UserError

from .base import Distiller, Spec, in_float32
from .criteria.abkd import abdkd_loss, abkd_loss
from .dkd import OPTIONS, DKDDistiller

LEAST = 0.01        # below it, the quotient of the divergence is rounding error in float32


class ABKDDistiller(Distiller):
    """Wang et al., ICML 2025, ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
    alpha-beta-Divergence, arXiv:2505.04560.

    --abkd_base dkd uses the divergence among the other classes of dkd, with the published values of dkd.
    """

    spec = Spec(
        title='ABKD', paper='Wang et al., ICML 2025, arXiv:2505.04560', uses='logits',
        published={'alpha': 0.0, 'beta': 32.0, 'kd_T': 4.0, 'ab_alpha': 0.8, 'ab_beta': 0.3},
        published_logit_stand={'gamma': 0.1, 'beta': 36.0, 'kd_T': 2.0, 'ab_alpha': 0.9}, reads_kd_T=True)

    @classmethod
    def add_arguments(cls, add):
        DKDDistiller.add_arguments(add)
        add('--abkd_base', choices=('kd', 'dkd'), default='kd', help='the loss whose KL the divergence replaces')
        add('--ab_alpha', type=number(float, low=-10, high=10),
            help="exponent of the teacher's probabilities; not given: 0.8, with --logit_stand 0.9")
        add('--ab_beta', type=number(float, low=-10, high=10),
            help="exponent of the student's probabilities; not given: 0.3, with --abkd_base dkd 0.2")

    @classmethod
    def options_without_effect(cls, opt):
        return {} if opt.abkd_base == 'dkd' else dict.fromkeys(OPTIONS, '--abkd_base dkd')

    @classmethod
    def published_options(cls, opt):
        usual = super().published_options(opt)
        if opt.abkd_base == 'dkd':
            return {**usual, **DKDDistiller.published_options(opt), 'ab_alpha': 0.8, 'ab_beta': 0.2}
        return usual

    def build(self, opt, data, shapes_s, shapes_t):
        self.base, self.ab_alpha, self.ab_beta = opt.abkd_base, opt.ab_alpha, opt.ab_beta
        self.dkd_alpha, self.dkd_beta = opt.dkd_alpha, opt.dkd_beta
        if any(0 < abs(x) < LEAST for x in (opt.ab_alpha, opt.ab_beta, opt.ab_alpha + opt.ab_beta)):
            raise UserError(f'--ab_alpha {opt.ab_alpha:g} --ab_beta {opt.ab_beta:g}: each of them, and their sum, must '
                            f'be 0, or at least {LEAST} in size')
        for flag in ('mixup', 'cutmix', 'unlabelled') if opt.abkd_base == 'dkd' else ():
            if getattr(opt, flag):
                raise UserError(f'--{flag} {getattr(opt, flag)}: --abkd_base dkd needs one class for each image; '
                                f'leave one of the two out')

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        logits_s, logits_t, temperature = self.soft_labels(out_s, out_t)
        if self.base == 'kd':
            return abkd_loss(logits_s, logits_t, self.ab_alpha, self.ab_beta, temperature)
        return abdkd_loss(logits_s, logits_t, target, self.dkd_alpha, self.dkd_beta, temperature, self.ab_alpha,
                          self.ab_beta)
