"""The method luminet; its loss is in criteria/luminet.py."""
from helper.cli import number

from .base import Distiller, Spec, in_float32
from .criteria.luminet import LumiNetLoss


class LumiNetDistiller(Distiller):
    """Hossain et al., TMLR 2025, LumiNet, arXiv:2310.03669.

    Each process normalises over its own part of the batch, so the loss depends on their number.
    """

    spec = Spec(
        title='LumiNet', paper='Hossain et al., TMLR 2025, arXiv:2310.03669', uses='logits of a batch',
        published={'gamma': 2.0, 'alpha': 0.0, 'beta': 1.0, 'kd_T': 4.0, 'luminet_alpha': 33.0,
                   'loss_warmup_epochs': 20},
        published_imagenet={'gamma': 1.0, 'kd_T': 0.7, 'luminet_alpha': 2.0, 'loss_warmup_epochs': 1}, pairwise=True,
        reads_kd_T=True)

    @classmethod
    def add_arguments(cls, add):
        add('--luminet_alpha', type=number(float, low=0),
            help='the loss is multiplied by its square; not given: 33, for ImageNet 2')

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = LumiNetLoss(opt.luminet_alpha, opt.kd_T)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.logits, out_t.logits)
