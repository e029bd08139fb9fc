"""HKD: the flow of information through a middle-sized teacher, layer by layer."""
from torch import nn

from .pairwise import cosine_kernel, row_probabilities, squared_distances


def _jeffreys(p, q):
    """Mean over all pairs of the symmetric divergence's terms."""
    return ((p - q) * (p.log() - q.log())).mean()


def _student_t_kernel(x, eps):
    """(N, D) -> (N, N): 1 / (1 + distance)."""
    return 1 / (1 + (squared_distances(x, eps=0.0) + eps).sqrt())


class HKDLoss(nn.Module):
    """Divergences of the samples' similarities, by a cosine and by a Student-t kernel, layer by layer.

    Layer i counts init_weight * decay^i. The paper's teacher is an auxiliary net, of a size between, taught with PKT.
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
            for kernel in (cosine_kernel, _student_t_kernel):
                p_s, p_t = (row_probabilities(kernel(x, self.eps)) for x in (s, t))
                loss = loss + self.init_weight * self.decay ** i * _jeffreys(p_t, p_s)
        return loss
