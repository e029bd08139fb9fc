"""ICKD: the student's channels correlate with each other as the teacher's do."""
import torch.nn.functional as F
from torch import nn


class ICKDLoss(nn.Module):
    """Squared difference of the Gram matrices of the channels, each row l2-normalised: the paper's ICKD-C.

    Liu et al., ICCV 2021, Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation,
    arXiv:2202.03680; as its code for CIFAR computes it.
    Published: weight 2.5 for CIFAR-100, weight 1 for ImageNet.
    """

    def forward(self, f_s, f_t):
        """Maps (N, C, H, W) and (N, C, H', W') -> scalar, divided by C * N.

        A trained ConvBN gives the student's map the teacher's channels, for ImageNet with kernel 3.
        """
        return (self.gram(f_s) - self.gram(f_t)).pow(2).sum() / (f_s.shape[1] * len(f_s))

    def gram(self, f):
        flat = f.flatten(2)
        return F.normalize(flat @ flat.transpose(1, 2), dim=2)
