"""TTM and WTTM: the teacher's probabilities are raised to a power; the student has no temperature."""
import torch.nn.functional as F
from torch import nn


class TTMLoss(nn.Module):
    """KL(teacher's probabilities to a power, normalised || student), which has no temperature.

    exponent: that power, the paper's gamma, the inverse of a temperature.
    Zheng and Yang, ICLR 2024, Knowledge Distillation Based on Transformed Teacher Matching, arXiv:2402.11148.
    Published: weight 45, exponent 0.1.
    """

    def __init__(self, exponent: float):
        super().__init__()
        self.exponent = exponent

    def rows(self, logits_s, logits_t):
        """(N,) of KL(teacher to the power, normalised || student), and (N,) of the log of what normalised it."""
        log_power = self.exponent * F.log_softmax(logits_t, dim=1)
        log_norm = log_power.logsumexp(1, keepdim=True)
        log_q = log_power - log_norm
        return (log_q.exp() * (log_q - F.log_softmax(logits_s, dim=1))).sum(1), log_norm[:, 0]

    def forward(self, logits_s, logits_t):
        """Logits (N, classes) of both nets -> scalar."""
        return self.rows(logits_s, logits_t)[0].mean()


class WTTMLoss(TTMLoss):
    """TTMLoss with a weight for each image, the sum of the teacher's powers: it is larger where the teacher is unsure.

    Of the same paper. Published: weight 4, exponent 0.2.
    """

    def forward(self, logits_s, logits_t):
        """Logits (N, classes) of both nets -> scalar."""
        divergence, log_norm = self.rows(logits_s, logits_t)
        return (log_norm.exp() * divergence).mean()
