"""PKT, probabilistic knowledge transfer."""
from torch import nn

from .common import cosine_probabilities


class PKT(nn.Module):
    """Kullback-Leibler divergence of the probabilities that two samples of the batch are neighbours.

    Passalis and Tefas, ECCV 2018, Learning Deep Representations with Probabilistic Knowledge Transfer,
    arXiv:1803.10837.
    Published: weight 30000.
    """

    eps = 1e-7

    def forward(self, f_s, f_t):
        """Embeddings (N, D_s) and (N, D_t) -> scalar, the mean over the pairs of samples."""
        p_s, p_t = (cosine_probabilities(f, self.eps) for f in (f_s, f_t))
        return (p_t * ((p_t + self.eps) / (p_s + self.eps)).log()).mean()
