"""AT, attention transfer."""
import torch.nn.functional as F
from torch import nn

from .common import match_size


def attention_map(f, p: int = 2):
    """(N, C, H, W) -> (N, H * W): the mean of f^p over the channels, l2-normalised."""
    return F.normalize(f.pow(p).mean(1).flatten(1), dim=1)


class Attention(nn.Module):
    """Mean squared difference of the attention maps: the mean of f^p over the channels, l2-normalised.

    Zagoruyko and Komodakis, ICLR 2017, Paying More Attention to Attention, arXiv:1612.03928.
    Published: weight 1000, p 2.
    """

    def __init__(self, p: int = 2):
        super().__init__()
        self.p = p

    def forward(self, g_s: list, g_t: list):
        """Lists of maps (N, C, H, W), paired in order -> a list of scalars, one for each pair.

        The larger map of a pair is average-pooled to the size of the other. Extra maps of the longer list are ignored.
        """
        pairs = (match_size(f_s, f_t) for f_s, f_t in zip(g_s, g_t, strict=False))
        return [(attention_map(f_s, self.p) - attention_map(f_t, self.p)).pow(2).mean() for f_s, f_t in pairs]
