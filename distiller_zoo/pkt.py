"""The method pkt; its loss is in criteria/pkt.py."""
from .base import Distiller, Spec, in_float32
from .criteria.pkt import PKT


class PKTDistiller(Distiller):
    spec = Spec(
        title='PKT', paper='Passalis and Tefas, ECCV 2018, arXiv:1803.10837', uses='feats[-1]',
        published={'beta': 30000.0}, needs=('embedding',), pairwise=True, features_only=True)

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = PKT()

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.embedding, out_t.embedding)
