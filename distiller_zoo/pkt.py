"""The method pkt: its flags and published values, and the outputs that feed criteria/pkt.py."""
from .base import Distiller
from .criteria.pkt import PKT


class PKTDistiller(Distiller):
    title = 'PKT'
    paper = 'Passalis and Tefas, ECCV 2018, arXiv:1803.10837'
    uses = 'feats[-1]'
    needs = ('embedding',)
    published = {'beta': 30000.0}
    float32 = True
    pairwise = True

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = PKT()

    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.embedding, out_t.embedding)
