"""The method ttm; its loss is in criteria/ttm.py."""
from helper.cli import number

from .base import Distiller, Spec, in_float32
from .criteria.ttm import TTMLoss, WTTMLoss


class TTMDistiller(Distiller):
    spec = Spec(
        title='TTM', paper='Zheng and Yang, ICLR 2024, arXiv:2402.11148', uses='logits',
        published={'alpha': 0.0, 'beta': 45.0})

    @classmethod
    def add_arguments(cls, add):
        add('--ttm_exponent', type=number(float, above=0, high=1), default=0.1,
            help="power of the teacher's probabilities")

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = TTMLoss(opt.ttm_exponent)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.logits, out_t.logits)


class WTTMDistiller(TTMDistiller):
    spec = Spec(
        title='WTTM', paper=TTMDistiller.spec.paper, uses='logits', published={'alpha': 0.0, 'beta': 4.0})

    @classmethod
    def add_arguments(cls, add):
        add('--wttm_exponent', type=number(float, above=0, high=1), default=0.2,
            help="power of the teacher's probabilities")

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = WTTMLoss(opt.wttm_exponent)
