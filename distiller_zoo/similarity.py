"""The method similarity; its loss is in criteria/similarity.py."""
from .base import Distiller, Spec, in_float32
from .criteria.similarity import Similarity


class SPDistiller(Distiller):
    spec = Spec(
        title='SP', paper='Tung and Mori, ICCV 2019, arXiv:1907.09682', uses='feats[-2]', published={'beta': 3000.0},
        needs=('feats',), pairwise=True, features_only=True)

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = Similarity()

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return sum(self.criterion([out_s.feats[-2]], [out_t.feats[-2]]))
