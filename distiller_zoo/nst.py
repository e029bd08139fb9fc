"""The method nst: its flags and published values, and the outputs that feed criteria/nst.py."""
from .base import Distiller
from .criteria.nst import NSTLoss


class NSTDistiller(Distiller):
    title = 'NST'
    paper = 'Huang and Wang, 2017, arXiv:1707.01219'
    uses = 'stage features, in order'
    needs = ('feats',)
    published = {'beta': 50.0}
    float32 = True

    def build(self, opt, data, shapes_s, shapes_t):
        self.check_maps(opt, shapes_s.feats[1:-1], shapes_t.feats[1:-1])
        self.criterion = NSTLoss()

    def method_loss(self, out_s, out_t, target, index):
        return sum(self.criterion(out_s.feats[1:-1], out_t.feats[1:-1]))
