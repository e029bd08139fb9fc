"""The method nst; its loss is in criteria/nst.py."""
from .base import Distiller, Spec, check_maps, in_float32
from .criteria.nst import NSTLoss


class NSTDistiller(Distiller):
    spec = Spec(
        title='NST', paper='Huang and Wang, 2017, arXiv:1707.01219', uses='stage features, in order',
        published={'beta': 50.0}, needs=('feats',), features_only=True)

    def build(self, opt, data, shapes_s, shapes_t):
        check_maps(opt, shapes_s.feats[1:-1], shapes_t.feats[1:-1])
        self.criterion = NSTLoss()

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return sum(self.criterion(out_s.feats[1:-1], out_t.feats[1:-1]))
