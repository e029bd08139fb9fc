"""SP: images that are similar for the teacher become similar for the student."""
import torch.nn.functional as F
from torch import nn

from .base import Distiller


class Similarity(nn.Module):
    """Tung and Mori, ICCV 2019, Similarity-Preserving Knowledge Distillation, arXiv:1907.09682."""

    def forward(self, g_s: list, g_t: list):
        """Lists of features (N, ...) -> list of scalars: squared difference of the Gram matrices over N^2."""
        return [(self.gram(f_s) - self.gram(f_t)).pow(2).sum() / len(f_s) ** 2
                for f_s, f_t in zip(g_s, g_t, strict=True)]

    def gram(self, f):
        flat = f.flatten(1)
        return F.normalize(flat @ flat.t(), dim=1)


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
