"""The method rkd: its flags and published values, and the outputs that feed criteria/rkd.py."""
from .base import Distiller
from .criteria.rkd import RKDLoss


class RKDDistiller(Distiller):
    title = 'RKD'
    paper = 'Park et al., CVPR 2019, arXiv:1904.05068'
    uses = 'feats[-1]'
    needs = ('embedding',)
    published = {'beta': 1.0}
    float32 = True
    pairwise = True

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = RKDLoss()

    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.embedding, out_t.embedding)
