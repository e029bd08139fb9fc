"""The method ldrld; its loss is in criteria/ldrld.py."""
from helper.cli import number
from helper.errors import UserError

from .base import Distiller, Spec, in_float32
from .criteria.ldrld import LDRLDLoss

K = 7


class LDRLDDistiller(Distiller):
    """Xu et al., ICCV 2025, Local Dense Logit Relations for Enhanced Knowledge Distillation, arXiv:2507.15911.

    Published with a learning rate that grows over 20 epochs, --warmup_epochs 20.
    """

    spec = Spec(
        title='LDRLD', paper='Xu et al., ICCV 2025, arXiv:2507.15911', uses='logits',
        published={'alpha': 0.0, 'beta': 1.0, 'kd_T': 4.0}, reads_kd_T=True)

    @classmethod
    def add_arguments(cls, add):
        add('--ldrld_alpha', type=number(float, low=0), default=10.5,
            help="weight of the student's most probable classes")
        add('--ldrld_beta', type=number(float, low=0), default=7.0, help='weight of the other classes')
        add('--ldrld_k', type=number(int, low=1),
            help=f'number of the most probable classes; not given: {K}, or all if there are fewer')

    def build(self, opt, data, shapes_s, shapes_t):
        k = opt.ldrld_k or min(K, data.num_classes)
        if k > data.num_classes:
            raise UserError(f'--ldrld_k {k}: the data has {data.num_classes} classes; give at most that')
        self.criterion = LDRLDLoss(opt.ldrld_alpha, opt.ldrld_beta, opt.kd_T, k)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.logits, out_t.logits)
