"""KD, soft labels, which most methods add to their own loss."""
import torch.nn.functional as F
from torch import Tensor, nn


def distill_kl(logit_s: Tensor, logit_t: Tensor, T, weights: Tensor | None = None) -> Tensor:
    """Logits (N, classes) -> scalar: T^2 * KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch.

    weights: (N,), of the images; not given: 1 each. The average is over all images, not divided by their weights.

    Hinton et al., 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """
    log_p_s = F.log_softmax(logit_s / T, dim=1)
    p_t = F.softmax(logit_t / T, dim=1)
    if weights is None:
        return F.kl_div(log_p_s, p_t, reduction='batchmean') * T ** 2
    return (F.kl_div(log_p_s, p_t, reduction='none').sum(1) * weights).mean() * T ** 2


class DistillKL(nn.Module):
    """distill_kl as a module, with a fixed temperature T.

    Published: weight 1, T 4.
    """

    def __init__(self, T: float):
        super().__init__()
        self.T = T

    def forward(self, logit_s, logit_t, weights=None):
        """Logits (N, classes) of both nets, weights (N,) of the images or None -> scalar, multiplied by T^2."""
        return distill_kl(logit_s, logit_t, self.T, weights)
