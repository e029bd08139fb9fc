"""LDRLD, local dense relational logit distillation."""
import torch
import torch.nn.functional as F
from torch import nn

from .common import kl_per_image


class LDRLDLoss(nn.Module):
    """Soft labels of each two of the student's k most probable classes, of all k together, and of the other classes.

    alpha weights the first two, beta the last. A pair weighs more if its ranks are close and high.
    Xu et al., ICCV 2025, Local Dense Logit Relations for Enhanced Knowledge Distillation, arXiv:2507.15911; as its
    published code computes it.
    Published: weight 1, alpha 10.5, beta 7, temperature 4, k 7 for CIFAR-100.
    """

    def __init__(self, alpha: float = 10.5, beta: float = 7.0, temperature: float = 4.0, k: int = 7):
        super().__init__()
        self.alpha, self.beta, self.temperature, self.k = alpha, beta, temperature, k
        first, second = torch.triu_indices(k, k, offset=1)
        weights = 2 / (1.5 + second - first) * torch.exp(-0.05 * (first + second + 2))
        self.register_buffer('pairs', torch.stack([first, second], 1), persistent=False)       # ranks from 0, (P, 2)
        self.register_buffer('pair_weights', weights, persistent=False)

    def parts(self, logits_s, logits_t):
        """Logits (N, classes) -> two scalars before alpha and beta: the loss of the k classes, of the others."""
        top = logits_s.detach().topk(self.k, dim=1).indices
        top_s, top_t = (logits.gather(1, top) / self.temperature for logits in (logits_s, logits_t))
        of_pairs = kl_per_image(*(x[:, self.pairs].log_softmax(-1) for x in (top_t, top_s)))
        of_pairs = of_pairs @ self.pair_weights.to(of_pairs.dtype)
        of_top = kl_per_image(*(x.log_softmax(-1) for x in (top_t, top_s)))
        if self.k == 2:     # as in the published code, which takes them for another pair
            of_top = of_top * self.pair_weights
        pairs = (of_pairs + of_top).mean() / (len(self.pairs) + 1)
        rest = kl_per_image(*(self.log_p_others(logits, top) for logits in (logits_t, logits_s))).mean()
        return self.temperature ** 2 * pairs, self.temperature ** 2 * rest

    def log_p_others(self, logits, top):
        """log p among the classes that are not in `top` (N, k), 0 at those that are; among all if none is left."""
        if self.k == logits.shape[1]:
            return F.log_softmax(logits / self.temperature, dim=1)
        return F.log_softmax(logits.scatter(1, top, -torch.inf) / self.temperature, dim=1).scatter(1, top, 0)

    def forward(self, logits_s, logits_t):
        """Logits (N, classes) of both nets, at least k classes -> scalar, multiplied by T^2."""
        pairs, rest = self.parts(logits_s, logits_t)
        return self.alpha * pairs + self.beta * rest
