"""VID: the student's maps learn to predict the teacher's, each channel with a variance of its own."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from .pool import match_size


class VIDLoss(nn.Module):
    """Ahn et al., CVPR 2019, Variational Information Distillation for Knowledge Transfer, arXiv:1904.05835.

    A regressor gives the mean of a Gaussian over the teacher's map, log_scale its variance for each channel:
    softplus(log_scale) + eps, at first init_pred_var.
    """

    def __init__(self, num_input: int, num_mid: int, num_target: int, init_pred_var: float = 5.0, eps: float = 1e-5):
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(num_input, num_mid, 1, bias=False), nn.ReLU(),
            nn.Conv2d(num_mid, num_mid, 1, bias=False), nn.ReLU(),
            nn.Conv2d(num_mid, num_target, 1, bias=False))
        self.log_scale = nn.Parameter(torch.full((num_target,), math.log(math.exp(init_pred_var - eps) - 1)))
        self.eps = eps

    def forward(self, f_s, f_t):
        """Maps (N, num_input, H, W), (N, num_target, H', W') -> the mean negative log-likelihood, less a constant."""
        f_s, f_t = match_size(f_s, f_t)
        variance = (F.softplus(self.log_scale) + self.eps).view(1, -1, 1, 1)
        return ((self.regressor(f_s) - f_t).pow(2) / variance + variance.log()).mean() / 2
