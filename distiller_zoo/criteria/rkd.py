"""RKD: the student's embeddings keep the teacher's distances and angles."""
import torch
import torch.nn.functional as F
from torch import nn

from .pairwise import squared_distances


class RKDLoss(nn.Module):
    """Huber losses on the distances between samples and on the angles of three samples.

    w_d weights the distances, each net's divided by their mean, w_a the cosines of the angles.
    Park et al., CVPR 2019, Relational Knowledge Distillation, arXiv:1904.05068.
    Published: weight 1, w_d 25, w_a 50.
    """

    def __init__(self, w_d: float = 25, w_a: float = 50):
        super().__init__()
        self.w_d, self.w_a = w_d, w_a

    def forward(self, f_s, f_t):
        """Embeddings (N, D_s) and (N, D_t) -> scalar. Raises ValueError for a batch of one sample."""
        if len(f_s) < 2:
            raise ValueError('RKDLoss compares the samples of a batch: give at least two')
        with torch.no_grad():
            distances_t, angles_t = self.relations(f_t)
        distances_s, angles_s = self.relations(f_s)
        return self.w_d * F.smooth_l1_loss(distances_s, distances_t) + self.w_a * F.smooth_l1_loss(angles_s, angles_t)

    def relations(self, f):
        """(N, D) -> distances (N, N) over their mean, cosines (N, N, N) of the angle at i between j and k.

        <x_j - x_i, x_k - x_i> comes from the Gram matrix of the centred samples, so the differences (N, N, D) are never
        made; where two samples coincide, or j or k is i, the cosine is 0.
        """
        f = f.flatten(1)
        n = len(f)
        f = f - f.mean(0)
        gram = f @ f.t()
        norm = gram.diagonal()
        squared = squared_distances(f, eps=1e-12)
        distances = (squared + torch.eye(n, device=f.device)).sqrt() * (1 - torch.eye(n, device=f.device))
        apart = squared > 1e-6 * (norm[:, None] + norm)
        inverse = torch.where(apart, squared, 1.0).rsqrt() * apart
        inner = gram[None] - gram[:, :, None] - gram[:, None, :] + norm[:, None, None]
        cosines = inner * inverse[:, :, None] * inverse[:, None, :]
        return distances / (distances.sum() / (n * (n - 1))), cosines
