"""VID, variational information distillation."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from .common import match_size


class VIDLoss(nn.Module):
    """Negative log-likelihood of the teacher's map, whose mean a trained regressor predicts from the student's map.

    num_input, num_target: channels of both maps. num_mid: channels between the regressor's convolutions; the authors
    use num_target. The variance of each channel is trained too: softplus(log_scale) + eps, initially init_pred_var.
    Ahn et al., CVPR 2019, Variational Information Distillation for Knowledge Transfer, arXiv:1904.05835.
    Published: weight 1, init_pred_var 5; the losses of all pairs of layers are summed.
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
        """Maps (N, num_input, H, W), (N, num_target, H', W') -> scalar, the mean without the constant term.

        The larger map is average-pooled to the size of the other.
        """
        f_s, f_t = match_size(f_s, f_t)
        variance = (F.softplus(self.log_scale) + self.eps).view(1, -1, 1, 1)
        return ((self.regressor(f_s) - f_t).pow(2) / variance + variance.log()).mean() / 2
