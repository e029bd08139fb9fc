"""TTM and WTTM, transformed teacher matching."""
import torch.nn.functional as F
from torch import nn


class TTMLoss(nn.Module):
    """KL(teacher's probabilities raised to a power and normalised || student's). The student has no temperature.

    exponent: the power, gamma in the paper, the inverse of a temperature.
    Zheng and Yang, ICLR 2024, Knowledge Distillation Based on Transformed Teacher Matching, arXiv:2402.11148.
    Published: weight 45, exponent 0.1.
    """

    def __init__(self, exponent: float):
        super().__init__()
        self.exponent = exponent

    def per_image(self, logits_s, logits_t):
        """The divergence (N,), and the log (N,) of the sum by which the powers were normalised."""
        log_power = self.exponent * F.log_softmax(logits_t, dim=1)
        log_norm = log_power.logsumexp(1, keepdim=True)
        log_p_s = F.log_softmax(logits_s, dim=1)
        divergence = F.kl_div(log_p_s, log_power - log_norm, log_target=True, reduction='none').sum(1)
        return divergence, log_norm[:, 0]

    def forward(self, logits_s, logits_t):
        """Logits (N, classes) of both nets -> scalar."""
        return self.per_image(logits_s, logits_t)[0].mean()


class WTTMLoss(TTMLoss):
    """TTMLoss weighted for each image by the sum of the teacher's powers, which is larger where the teacher is unsure.

    Published in the same paper: weight 4, exponent 0.2.
    """

    def forward(self, logits_s, logits_t):
        """Logits (N, classes) of both nets -> scalar."""
        divergence, log_norm = self.per_image(logits_s, logits_t)
        return (log_norm.exp() * divergence).mean()
