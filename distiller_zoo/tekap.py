"""The method tekap; its loss is in criteria/tekap.py."""
from helper.cli import number

from .base import Distiller, Spec, in_float32
from .criteria.tekap import TeKAPLoss


class TeKAPDistiller(Distiller):
    """Hossain et al., ICLR 2025, Single Teacher, Multiple Perspectives: Teacher Knowledge Augmentation for Enhanced
    Knowledge Distillation, openreview DmEHmZ89iB; its augmentation of the logits. Each step draws new noise."""

    spec = Spec(
        title='TeKAP', paper='Hossain et al., ICLR 2025, openreview DmEHmZ89iB', uses='logits, with noise',
        published={'gamma': 0.1, 'alpha': 0.0, 'beta': 0.9, 'kd_T': 4.0}, reads_kd_T=True)

    @classmethod
    def add_arguments(cls, add):
        add('--tekap_count', type=number(int, low=1, high=1000), default=3, help="noisy copies of the teacher's logits")
        add('--tekap_strength', type=number(float, low=0, high=1), default=0.1,
            help='share of the noise in a copy; 1: only noise')
        add('--tekap_weight', type=number(float, low=0), default=0.8,
            help="weight of a copy's soft labels; the weight of the teacher's is 1")

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = TeKAPLoss(opt.kd_T, opt.tekap_count, opt.tekap_strength, opt.tekap_weight)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.logits, out_t.logits)
