"""SRD, the simple recipe for distillation: normalised embeddings, an exponent and a logarithm."""
import torch
from torch import nn


class SRDLoss(nn.Module):
    """Logarithm of the sum, over samples and channels, of |difference|^exponent of the normalised embeddings.

    Each channel of both nets is normalised over the batch, with eps added to its variance, so a constant channel
    becomes 0. Equal embeddings give the logarithm of the smallest float, without gradient.
    Miles and Mikolajczyk, AAAI 2024, Understanding the Role of the Projector in Knowledge Distillation,
    arXiv:2303.11098.
    Published for ImageNet: weight 2, beside soft labels with T 1.
    """

    def __init__(self, exponent: float = 4.0, eps: float = 1e-4):
        super().__init__()
        self.exponent, self.eps = exponent, eps

    def forward(self, h, f_t):
        """Embeddings (N, C) of both nets, the student's through a linear layer to the teacher's width -> scalar."""
        if len(h) < 2:
            raise ValueError('SRDLoss normalises over the samples of a batch: give at least two')
        total = (self.normalise(h) - self.normalise(f_t)).abs().pow(self.exponent).sum()
        return total.clamp(min=torch.finfo(total.dtype).tiny).log()

    def normalise(self, x):
        """(N, C) -> each channel with mean 0 and variance 1 over the batch."""
        centred = x - x.mean(0)
        return centred / (centred.pow(2).mean(0) + self.eps).sqrt()
