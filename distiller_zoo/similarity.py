"""The method similarity: its flags and published values, and the outputs that feed criteria/similarity.py."""
from .base import Distiller
from .criteria.similarity import Similarity


class SPDistiller(Distiller):
    title = 'SP'
    paper = 'Tung and Mori, ICCV 2019, arXiv:1907.09682'
    uses = 'feats[-2]'
    needs = ('feats',)
    published = {'beta': 3000.0}
    float32 = True
    pairwise = True

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = Similarity()

    def method_loss(self, out_s, out_t, target, index):
        return sum(self.criterion([out_s.feats[-2]], [out_t.feats[-2]]))
