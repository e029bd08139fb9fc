"""PKT: the student keeps the teacher's probabilities of two samples being neighbours."""
from torch import nn

from .pairwise import cosine_kernel, row_probabilities


class PKT(nn.Module):
    """Kullback-Leibler divergence of the probabilities that two samples of the batch are neighbours.

    Passalis and Tefas, ECCV 2018, Learning Deep Representations with Probabilistic Knowledge Transfer,
    arXiv:1803.10837.
    Published: weight 30000.
    """

    eps = 1e-7

    def forward(self, f_s, f_t):
        """Embeddings (N, D_s) and (N, D_t) -> scalar, the mean over the pairs of samples."""
        p_s, p_t = (row_probabilities(cosine_kernel(f, self.eps)) for f in (f_s, f_t))
        return (p_t * ((p_t + self.eps) / (p_s + self.eps)).log()).mean()
