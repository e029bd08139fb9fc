"""The soft-label loss that every method adds to its own."""
import torch.nn.functional as F
from torch import nn


class DistillKL(nn.Module):
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch.

    Hinton et al., 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """

    def __init__(self, T: float):
        super().__init__()
        self.T = T

    def forward(self, logit_s, logit_t):
        """Both (N, classes) -> scalar."""
        log_p_s = F.log_softmax(logit_s / self.T, dim=1)
        p_t = F.softmax(logit_t / self.T, dim=1)
        return F.kl_div(log_p_s, p_t, reduction='batchmean') * self.T ** 2
