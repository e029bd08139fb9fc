"""NKD, normalised knowledge distillation."""
import torch
import torch.nn.functional as F
from torch import nn


def true_class_loss(logits_s, logits_t, target):
    """Logits (N, classes), target (N,) -> scalar: the mean of -p_teacher * log p_student of the true class."""
    log_p_s, log_p_t = (F.log_softmax(logits, dim=1).gather(1, target[:, None]) for logits in (logits_s, logits_t))
    return -(log_p_t.exp() * log_p_s).mean()


def remove_true_class(logits, target):
    """(N, classes) -> (N, classes - 1), the logits of the other classes in their order."""
    column = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, column + (column >= target[:, None]))


class NKDLoss(nn.Module):
    """Cross-entropy with the teacher's probabilities, of the true class and of the others normalised to sum 1.

    gamma: weight of the other classes. temperature: applied to the other classes only. Neither term has the minimum 0.
    Yang et al., ICCV 2023, From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels, arXiv:2303.13005.
    Published: weight 1, gamma 3.5, temperature 3 for CIFAR-100; weight 1 and the defaults for ImageNet.
    """

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0):
        super().__init__()
        self.gamma, self.temperature = gamma, temperature

    def forward(self, logits_s, logits_t, target):
        """Logits (N, classes) of both nets, target (N,) -> scalar."""
        others_s, others_t = (remove_true_class(logits, target) / self.temperature for logits in (logits_s, logits_t))
        others = -(F.softmax(others_t, dim=1) * F.log_softmax(others_s, dim=1)).sum(1).mean()
        return true_class_loss(logits_s, logits_t, target) + self.gamma * self.temperature ** 2 * others
