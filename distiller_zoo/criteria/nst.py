"""NST: the distribution of the student's channels learns to match that of the teacher's."""
import torch
import torch.nn.functional as F
from torch import nn

from .pool import match_size


class NSTLoss(nn.Module):
    """Maximum mean discrepancy of the channels' l2-normalised activation maps, with a squared linear kernel.

    Huang and Wang, 2017, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, arXiv:1707.01219.
    Published: weight 50.
    """

    def forward(self, g_s: list, g_t: list):
        """Lists of maps (N, C, H, W), paired in order -> list of scalars, one for each pair.

        The larger map of a pair is average-pooled to the other's size; extra maps of the longer list are ignored.
        """
        return [self.pair(*match_size(f_s, f_t)) for f_s, f_t in zip(g_s, g_t, strict=False)]

    def pair(self, f_s, f_t):
        s, t = (F.normalize(f.flatten(2), dim=2) for f in (f_s, f_t))
        with torch.no_grad():
            among_teachers = self.kernel(t, t)
        return among_teachers + self.kernel(s, s) - 2 * self.kernel(s, t)

    def kernel(self, a, b):
        """Mean over the samples' pairs of channels of <a_i, b_j>^2."""
        return (a @ b.transpose(1, 2)).pow(2).mean()
