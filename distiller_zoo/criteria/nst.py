"""NST, neuron selectivity transfer."""
import torch
import torch.nn.functional as F
from torch import nn

from .common import match_size


class NSTLoss(nn.Module):
    """Maximum mean discrepancy of the channels' l2-normalised activation maps, with a squared linear kernel.

    Huang and Wang, 2017, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, arXiv:1707.01219.
    Published: weight 50.
    """

    def forward(self, g_s: list, g_t: list):
        """Lists of maps (N, C, H, W), paired in order -> a list of scalars, one for each pair.

        The larger map of a pair is average-pooled to the size of the other. Extra maps of the longer list are ignored.
        """
        return [self.discrepancy(*match_size(f_s, f_t)) for f_s, f_t in zip(g_s, g_t, strict=False)]

    def discrepancy(self, f_s, f_t):
        s, t = (F.normalize(f.flatten(2), dim=2) for f in (f_s, f_t))
        with torch.no_grad():
            kernel_tt = self.mean_kernel(t, t)
        return kernel_tt + self.mean_kernel(s, s) - 2 * self.mean_kernel(s, t)

    def mean_kernel(self, a, b):
        """Mean of <a_i, b_j>^2 over the samples and their pairs of channels."""
        return (a @ b.transpose(1, 2)).pow(2).mean()
