"""The method attention; its loss is in criteria/attention.py."""
from .base import Distiller, Spec, check_maps
from .criteria.attention import Attention


class ATDistiller(Distiller):
    spec = Spec(
        title='AT', paper='Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928', uses='stage features, in order',
        published={'beta': 1000.0}, needs=('feats',), features_only=True)

    def build(self, opt, data, shapes_s, shapes_t):
        check_maps(opt, shapes_s.feats[1:-1], shapes_t.feats[1:-1])
        self.criterion = Attention()

    def method_loss(self, out_s, out_t, target, index):
        return sum(self.criterion(out_s.feats[1:-1], out_t.feats[1:-1]))
