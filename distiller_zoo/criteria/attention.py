"""AT: the student looks where the teacher looks."""
import torch.nn.functional as F
from torch import nn

from .pool import match_size


class Attention(nn.Module):
    """Mean squared difference of attention maps: the mean over the channels of f^p, flattened and l2-normalised.

    Zagoruyko and Komodakis, ICLR 2017, Paying More Attention to Attention, arXiv:1612.03928.
    Published: weight 1000, p 2.
    """

    def __init__(self, p: int = 2):
        super().__init__()
        self.p = p

    def forward(self, g_s: list, g_t: list):
        """Lists of maps (N, C, H, W), paired in order -> list of scalars, one for each pair.

        The larger map of a pair is average-pooled to the other's size; extra maps of the longer list are ignored.
        """
        return [self.pair(*match_size(f_s, f_t)) for f_s, f_t in zip(g_s, g_t, strict=False)]

    def pair(self, f_s, f_t):
        return (self.attention(f_s) - self.attention(f_t)).pow(2).mean()

    def attention(self, f):
        return F.normalize(f.pow(self.p).mean(1).flatten(1), dim=1)
