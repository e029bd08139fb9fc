"""RLD, refined logit distillation."""
import torch.nn.functional as F
from torch import nn

from .dkd import binary_log_p


class RLDLoss(nn.Module):
    """Soft labels of the classes that the teacher ranks below the true one, plus the teacher's confidence.

    alpha, alpha_temperature: weight and temperature of the confidence, which compares the student's probability of the
    true class with the teacher's largest probability. beta, temperature: those of the soft labels.
    Sun et al., ICCV 2025, Knowledge Distillation with Refined Logits, arXiv:2408.07703.
    Published: weight 1, alpha 1, beta 8, temperature 4, alpha_temperature 1 and a warm-up over 20 epochs for CIFAR-100;
    weight 1, alpha 1, beta 0.5, temperature 1, alpha_temperature 1 for ImageNet.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, alpha_temperature: float = 1.0):
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.temperature, self.alpha_temperature = temperature, alpha_temperature

    def forward(self, logits_s, logits_t, target):
        """Logits (N, classes) of both nets, target (N,) -> scalar.

        An image whose true class has the teacher's lowest rank contributes only its confidence.
        """
        target = target[:, None]
        binary_s, binary_t = (binary_log_p(F.log_softmax(logits / self.alpha_temperature, dim=1), label)
                              for logits, label in ((logits_s, target), (logits_t, logits_t.argmax(1, keepdim=True))))
        confidence = F.kl_div(binary_s, binary_t, log_target=True, reduction='batchmean')
        excluded = logits_t >= logits_t.gather(1, target)
        # Not -inf: if all classes are excluded, both distributions are uniform, and their divergence is 0.
        log_p_s, log_p_t = (F.log_softmax(logits.masked_fill(excluded, -1e9) / self.temperature, dim=1)
                            for logits in (logits_s, logits_t))
        masked = F.kl_div(log_p_s, log_p_t, log_target=True, reduction='batchmean')
        return self.alpha * self.alpha_temperature ** 2 * confidence + self.beta * self.temperature ** 2 * masked
