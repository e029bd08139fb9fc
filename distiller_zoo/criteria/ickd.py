"""ICKD, inter-channel correlation."""
from torch import nn

from .common import normalized_gram


class ICKDLoss(nn.Module):
    """Squared difference of the Gram matrices of the channels, each row l2-normalised: the paper's ICKD-C.

    Liu et al., ICCV 2021, Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation,
    arXiv:2202.03680; as its code for CIFAR computes it.
    Published: weight 2.5 for CIFAR-100, weight 1 for ImageNet.
    """

    def forward(self, f_s, f_t):
        """Maps (N, C, H, W) and (N, C, H', W') -> scalar, divided by C * N.

        A trained ConvBN maps the student's channels to the teacher's; for ImageNet it has kernel 3.
        """
        gram_s, gram_t = (normalized_gram(f.flatten(2)) for f in (f_s, f_t))
        return (gram_s - gram_t).pow(2).sum() / (f_s.shape[1] * len(f_s))
