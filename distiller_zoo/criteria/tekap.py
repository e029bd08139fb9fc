"""TeKAP, soft labels of one teacher and of noisy copies of its logits."""
import torch
from torch import nn

from .kd import distill_kl


class TeKAPLoss(nn.Module):
    """Soft labels of the teacher, plus weight times those of `count` copies (1 - strength) * logits + strength * noise.

    Hossain et al., ICLR 2025, Single Teacher, Multiple Perspectives: Teacher Knowledge Augmentation for Enhanced
    Knowledge Distillation, openreview DmEHmZ89iB; its augmentation of the logits.
    Published: weight 0.9, temperature 4, count 3, strength 0.1, weight 0.8 of the copies for CIFAR-100.
    """

    def __init__(self, temperature: float = 4.0, count: int = 3, strength: float = 0.1, weight: float = 0.8):
        super().__init__()
        self.temperature, self.count, self.strength, self.weight = temperature, count, strength, weight

    def forward(self, logits_s, logits_t, noise=None):
        """Logits (N, classes) of both nets -> scalar, multiplied by T^2.

        noise: (count, N, classes), standard normal; drawn if not given.
        """
        if noise is None:
            noise = torch.randn(self.count, *logits_t.shape, dtype=logits_t.dtype, device=logits_t.device)
        copies = (1 - self.strength) * logits_t + self.strength * noise
        return distill_kl(logits_s, logits_t, self.temperature) + \
            self.weight * sum(distill_kl(logits_s, copy, self.temperature) for copy in copies)
