"""NKD: soft labels in two parts, the true class, and the others normalised to sum to one."""
import torch
import torch.nn.functional as F
from torch import nn


def true_class_loss(logits_s, logits_t, target):
    """Logits (N, classes), target (N,) -> scalar: mean of -p_teacher * log p_student of the true class."""
    log_p_s, log_p_t = (F.log_softmax(logits, dim=1).gather(1, target[:, None]) for logits in (logits_s, logits_t))
    return -(log_p_t.exp() * log_p_s).mean()


def without_true_class(logits, target):
    """(N, classes) -> (N, classes - 1), the logits of the other classes in their order."""
    place = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, place + (place >= target[:, None]))


class NKDLoss(nn.Module):
    """Cross-entropy with the teacher's probabilities in two parts: the true class, and the others over their sum.

    gamma weights the part of the other classes, which alone has the temperature. Neither part reaches 0.
    Yang et al., ICCV 2023, From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels, arXiv:2303.13005.
    Published: weight 1, gamma 3.5, temperature 3 for CIFAR-100; weight 1 and the defaults for ImageNet.
    """

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0):
        super().__init__()
        self.gamma, self.temperature = gamma, temperature

    def forward(self, logits_s, logits_t, target):
        """Logits (N, classes) of both nets, target (N,) -> scalar."""
        others_s, others_t = (without_true_class(logits, target) / self.temperature for logits in (logits_s, logits_t))
        others = -(F.softmax(others_t, dim=1) * F.log_softmax(others_s, dim=1)).sum(1).mean()
        return true_class_loss(logits_s, logits_t, target) + self.gamma * self.temperature ** 2 * others
