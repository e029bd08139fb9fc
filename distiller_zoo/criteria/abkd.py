"""ABKD, the alpha-beta divergence as the loss on soft labels."""
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .dkd import dkd_per_image

MOST = 50.0      # exponents of e, which grow without limit only for a negative alpha or beta


def ab_divergence(log_p_t: Tensor, log_p_s: Tensor, alpha: float, beta: float) -> Tensor:
    """Log-probabilities (N, classes) of teacher and student -> the divergence of each image, (N,).

    (1, 0) is KL(teacher || student), (0, 1) KL(student || teacher). Where alpha, beta or their sum is 0, the formula is
    the one of the authors' code, which is not the limit of the general one: it differs by the factor alpha or beta.
    A class where both log-probabilities are 0 contributes nothing.
    """
    def power(a, b):        # p_t^a p_s^b; the logarithms stay exact where p_t or p_s rounds to 0
        return (a * log_p_t + b * log_p_s).clamp(max=MOST).exp()

    ratio = log_p_t - log_p_s
    if alpha == beta == 0:
        terms = ratio.square() / 2
    elif beta == 0:
        terms = (power(alpha, 0) * (alpha * ratio - 1) + power(0, alpha)) / alpha
    elif alpha == 0:
        terms = (power(0, beta) * (-beta * ratio - 1) + power(beta, 0)) / beta
    elif alpha + beta == 0:
        terms = (power(alpha, beta) - alpha * ratio - 1) / alpha
    else:
        both = alpha + beta
        terms = (alpha / both * power(both, 0) + beta / both * power(0, both) - power(alpha, beta)) / (alpha * beta)
    return terms.sum(1)


def abkd_loss(logits_s, logits_t, alpha: float, beta: float, temperature):
    """ABKDLoss as a function."""
    log_p_s, log_p_t = (F.log_softmax(logits / temperature, dim=1) for logits in (logits_s, logits_t))
    return ab_divergence(log_p_t, log_p_s, alpha, beta).mean()


def abdkd_loss(logits_s, logits_t, target, alpha: float, beta: float, temperature, ab_alpha: float, ab_beta: float):
    """ABDKDLoss as a function."""
    divergence = partial(ab_divergence, alpha=ab_alpha, beta=ab_beta)
    return dkd_per_image(logits_s, logits_t, target, alpha, beta, temperature, divergence).mean()


class ABKDLoss(nn.Module):
    """The alpha-beta divergence of the softened probabilities, averaged over the batch, without the factor T^2.

    Wang et al., ICML 2025, ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
    alpha-beta-Divergence, arXiv:2505.04560.
    Published: weight 32, alpha 0.8, beta 0.3, temperature 4 for CIFAR-100.
    """

    def __init__(self, alpha: float = 0.8, beta: float = 0.3, temperature: float = 4.0):
        super().__init__()
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def forward(self, logits_s, logits_t):
        """Logits (N, classes) of both nets -> scalar."""
        return abkd_loss(logits_s, logits_t, self.alpha, self.beta, self.temperature)


class ABDKDLoss(nn.Module):
    """DKD, whose KL among the other classes is the divergence with ab_alpha and ab_beta; (1, 0) is DKD itself.

    alpha, beta: weights of the true class and of the other classes, as in dkd_loss.
    Wang et al., ICML 2025, arXiv:2505.04560. Tried with ab_alpha 0.5 to 1.2 and ab_alpha + ab_beta 1.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, *, ab_alpha: float,
                 ab_beta: float):
        super().__init__()
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.ab_alpha, self.ab_beta = ab_alpha, ab_beta

    def forward(self, logits_s, logits_t, target):
        """Logits (N, classes) of both nets, target (N,) -> scalar, multiplied by T^2."""
        return abdkd_loss(logits_s, logits_t, target, self.alpha, self.beta, self.temperature, self.ab_alpha,
                          self.ab_beta)
