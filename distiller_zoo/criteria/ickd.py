"""ICKD: the student's channels correlate with each other as the teacher's do."""
import torch.nn.functional as F
from torch import nn


class ICKDLoss(nn.Module):
    """Liu et al., ICCV 2021, Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation,
    arXiv:2202.03680; the loss for whole images, ICKD-C, as its code for CIFAR computes it."""

    def forward(self, f_s, f_t):
        """Maps (N, C, H, W), (N, C, H', W') -> scalar: squared difference of the channels' Gram matrices / (C * N)."""
        return (self.gram(f_s) - self.gram(f_t)).pow(2).sum() / (f_s.shape[1] * len(f_s))

    def gram(self, f):
        flat = f.flatten(2)
        return F.normalize(flat @ flat.transpose(1, 2), dim=2)
