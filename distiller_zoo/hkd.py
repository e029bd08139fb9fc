"""The method hkd; its loss is in criteria/hkd.py."""
import re
from pathlib import Path

from helper.cli import number

from .base import Distiller, Spec, in_float32
from .criteria.hkd import HKDLoss


class HKDDistiller(Distiller):
    """The second of two distillations: --path-t is an auxiliary teacher that was itself distilled with pkt."""

    spec = Spec(
        title='HKD', paper='Passalis et al., CVPR 2020, arXiv:2005.00727', uses='stage features, in order',
        published={'beta': 1.0}, needs=('feats',), features_only=True,
        auxiliary_teacher='pkt', pairwise=True)

    @classmethod
    def add_arguments(cls, add):
        add('--hkd_initial_weight', type=number(float, low=0), default=100.0, help='weight of the first layer')
        add('--hkd_decay', type=number(float, above=0, high=100), default=0.7,
            help='its factor from each layer to the next')

    def build(self, opt, data, shapes_s, shapes_t):
        if not re.match('S[:~].+_T[:~]', Path(opt.path_t).resolve().parent.name):
            print(f'--distill hkd: {opt.model_t} was not itself distilled; the paper uses an auxiliary '
                  f'teacher, between teacher and student in size, distilled with --distill pkt')
        self.criterion = HKDLoss(opt.hkd_initial_weight, opt.hkd_decay)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.feats[1:-1], out_t.feats[1:-1])
