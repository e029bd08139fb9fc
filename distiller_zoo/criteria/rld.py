"""RLD: soft labels of a teacher that errs, with the classes that it ranks above the true one left out."""
import torch.nn.functional as F
from torch import nn

from .dkd import log_pair


class RLDLoss(nn.Module):
    """Soft labels of the classes that the teacher ranks below the true one, and its confidence.

    alpha weights the confidence, at alpha_temperature: the student's probability of the true class against the
    teacher's largest, whichever class that is. beta weights the soft labels, at temperature.
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

        An image whose true class is the teacher's last adds no more than its confidence.
        """
        target = target[:, None]
        pairs = (log_pair(F.log_softmax(logits / self.alpha_temperature, dim=1), chosen)
                 for logits, chosen in ((logits_s, target), (logits_t, logits_t.argmax(1, keepdim=True))))
        confidence = F.kl_div(*pairs, log_target=True, reduction='batchmean')
        left_out = logits_t >= logits_t.gather(1, target)
        # Not -inf: where nothing is left, both sides are uniform, and their divergence is 0.
        rest_s, rest_t = (F.log_softmax(logits.masked_fill(left_out, -1e9) / self.temperature, dim=1)
                          for logits in (logits_s, logits_t))
        masked = F.kl_div(rest_s, rest_t, log_target=True, reduction='batchmean')
        return self.alpha * self.alpha_temperature ** 2 * confidence + self.beta * self.temperature ** 2 * masked
