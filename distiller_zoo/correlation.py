"""CC: the student's errors on neighbouring samples learn not to be correlated."""
from torch import nn

from helper.cli import number

from .base import Distiller


class LinearEmbed(nn.Module):
    """(N, ...) -> (N, dim_out), one linear layer."""

    def __init__(self, dim_in: int = 1024, dim_out: int = 128):
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Correlation(nn.Module):
    """Peng et al., ICCV 2019, Correlation Congruence for Knowledge Distillation, arXiv:1904.01802."""

    def forward(self, f_s, f_t):
        """Two (N, D) -> scalar: products of the absolute differences of each sample and the next, summed over D."""
        difference = (f_s - f_t).abs()
        return (difference[:-1] * difference[1:]).sum(1).mean()


class CCDistiller(Distiller):
    title = 'CC'
    paper = 'Peng et al., ICCV 2019, arXiv:1904.01802'
    uses = 'feats[-1]'
    needs = ('embedding',)
    published = {'beta': 0.02}
    float32 = True
    pairwise = True

    @classmethod
    def add_arguments(cls, add):
        add('--feat_dim', type=number(int, low=1, high=65536), default=128, help='width of the embeddings')

    def build(self, opt, data, shapes_s, shapes_t):
        self.embed_s = LinearEmbed(shapes_s.embedding[0], opt.feat_dim)
        self.embed_t = LinearEmbed(shapes_t.embedding[0], opt.feat_dim)
        self.criterion = Correlation()

    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(self.embed_s(out_s.embedding), self.embed_t(out_t.embedding))
