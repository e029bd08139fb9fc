"""The method rkd; its loss is in criteria/rkd.py."""
from .base import Distiller, Spec, in_float32
from .criteria.rkd import RKDLoss


class RKDDistiller(Distiller):
    spec = Spec(
        title='RKD', paper='Park et al., CVPR 2019, arXiv:1904.05068', uses='feats[-1]', published={'beta': 1.0},
        needs=('embedding',), pairwise=True, features_only=True)

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = RKDLoss()

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.embedding, out_t.embedding)
