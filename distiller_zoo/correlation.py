"""The method correlation; its loss is in criteria/correlation.py."""
from helper.cli import number

from .base import Distiller, Spec, in_float32
from .criteria.correlation import Correlation, LinearEmbed


class CCDistiller(Distiller):
    spec = Spec(
        title='CC', paper='Peng et al., ICCV 2019, arXiv:1904.01802', uses='feats[-1]', published={'beta': 0.02},
        needs=('embedding',), pairwise=True, features_only=True)

    @classmethod
    def add_arguments(cls, add):
        add('--feat_dim', type=number(int, low=1, high=65536), default=128, help='width of the embeddings')

    def build(self, opt, data, shapes_s, shapes_t):
        self.embed_s = LinearEmbed(shapes_s.embedding[0], opt.feat_dim)
        self.embed_t = LinearEmbed(shapes_t.embedding[0], opt.feat_dim)
        self.criterion = Correlation()

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(self.embed_s(out_s.embedding), self.embed_t(out_t.embedding))
