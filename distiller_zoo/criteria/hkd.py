"""HKD, heterogeneous knowledge distillation."""
from torch import nn

from .common import cosine_probabilities, row_probabilities, squared_distances


def _t_probabilities(x, eps):
    """(N, D) -> (N, N): the Student-t kernel 1 / (1 + distance), each row divided by its sum."""
    return row_probabilities(1 / (1 + (squared_distances(x, eps=0.0) + eps).sqrt()))


def _jeffreys(p, q):
    """Mean of the terms of the symmetric Kullback-Leibler divergence."""
    return ((p - q) * (p.log() - q.log())).mean()


class HKDLoss(nn.Module):
    """Jeffreys divergence of the samples' similarities, by a cosine and by a Student-t kernel, layer by layer.

    Layer i has weight init_weight * decay^i. The paper's teacher is an auxiliary net of intermediate size, trained with
    PKT.
    Passalis et al., CVPR 2020, Heterogeneous Knowledge Distillation using Information Flow Modeling, arXiv:2005.00727.
    Published: weight 1, init_weight 100, decay 0.7.
    """

    eps = 1e-6

    def __init__(self, init_weight: float = 100, decay: float = 0.7):
        super().__init__()
        self.init_weight, self.decay = init_weight, decay

    def forward(self, f_s: list, f_t: list):
        """Lists of features (N, ...), paired in order -> scalar. Extra features of the longer list are ignored."""
        loss = 0.0
        for i, (s, t) in enumerate(zip(f_s, f_t, strict=False)):
            s, t = s.flatten(1), t.flatten(1)
            for probabilities in (cosine_probabilities, _t_probabilities):
                p_s, p_t = (probabilities(f, self.eps) for f in (s, t))
                loss = loss + self.init_weight * self.decay ** i * _jeffreys(p_t, p_s)
        return loss
