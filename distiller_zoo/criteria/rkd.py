"""RKD, relational knowledge distillation."""
import torch
import torch.nn.functional as F
from torch import nn

from .common import squared_distances


class RKDLoss(nn.Module):
    """Huber losses on the distances of two samples and on the angles of three samples.

    w_d: weight of the distances, which are divided by their mean. w_a: weight of the angles' cosines.
    Park et al., CVPR 2019, Relational Knowledge Distillation, arXiv:1904.05068.
    Published: weight 1, w_d 25, w_a 50.
    """

    def __init__(self, w_d: float = 25, w_a: float = 50):
        super().__init__()
        self.w_d, self.w_a = w_d, w_a

    def forward(self, f_s, f_t):
        """Embeddings (N, D_s) and (N, D_t) -> scalar. Raises ValueError for a single sample."""
        if len(f_s) < 2:
            raise ValueError('RKDLoss compares the samples of a batch: give at least two')
        with torch.no_grad():
            distances_t, angles_t = self.relations(f_t)
        distances_s, angles_s = self.relations(f_s)
        return self.w_d * F.smooth_l1_loss(distances_s, distances_t) + self.w_a * F.smooth_l1_loss(angles_s, angles_t)

    def relations(self, f):
        """(N, D) -> distances (N, N) over their mean, and cosines (N, N, N) of the angle at i between j and k.

        The Gram matrix of the centred samples yields <x_j - x_i, x_k - x_i>, without the differences (N, N, D). The
        cosine is 0 where two of the samples coincide.
        """
        f = f.flatten(1)
        n = len(f)
        f = f - f.mean(0)
        gram = f @ f.t()
        norm = gram.diagonal()
        squared = squared_distances(f, eps=1e-12)
        diagonal = torch.eye(n, device=f.device)
        distances = (squared + diagonal).sqrt() * (1 - diagonal)
        differ = squared > 1e-6 * (norm[:, None] + norm)
        inverse = torch.where(differ, squared, 1.0).rsqrt() * differ
        inner = gram[None] - gram[:, :, None] - gram[:, None, :] + norm[:, None, None]
        cosines = inner * inverse[:, :, None] * inverse[:, None, :]
        return distances / (distances.sum() / (n * (n - 1))), cosines
