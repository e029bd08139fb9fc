"""DKD, decoupled knowledge distillation."""
import torch
import torch.nn.functional as F

from .common import batch_mean, kl_per_image, true_class_mask


def binary_log_p(log_p, label):
    """Log-probabilities (N, classes), label (N, 1) -> (N, 2): log p of that class, and of all others together.

    The second is a logsumexp, so it stays finite where 1 - p rounds to 0.
    """
    others = log_p.scatter(1, label, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([log_p.gather(1, label), others], 1)


def dkd_per_image(logit_s, logit_t, target, alpha: float, beta: float, temperature, divergence=kl_per_image):
    """The loss of each image, (N,).

    divergence: compares the distributions over the other classes, as kl_per_image; a class where both log-probabilities
    are 0 must contribute nothing to it.
    """
    true = true_class_mask(logit_s, target)

    def split(logits):
        """(N, 2) log p of the true class and of all others; (N, classes) log p among the others, 0 at the true class.
        """
        log_p = F.log_softmax(logits / temperature, dim=1)
        binary = binary_log_p(log_p, target[:, None])
        return binary, (log_p - binary[:, 1:]).masked_fill(true, 0)

    (binary_s, others_s), (binary_t, others_t) = split(logit_s), split(logit_t)
    tckd = kl_per_image(binary_t, binary_s)
    return temperature ** 2 * (alpha * tckd + beta * divergence(others_t, others_s))


def dkd_loss(logit_s, logit_t, target, alpha: float, beta: float, temperature, weights=None):
    """Logits (N, classes), target (N,) -> scalar: T^2 * (alpha * target-class KL + beta * non-target-class KL).

    The first compares the probability of the true class, the second the distribution over the other classes. weights:
    a factor for each image, (N,), such as those of entropy_weights.
    Zhao et al., CVPR 2022, Decoupled Knowledge Distillation, arXiv:2203.08679.
    Published: weight 1, alpha 1, beta 8, temperature 4 and a warm-up over 20 epochs for CIFAR-100; weight 1, alpha 1,
    beta 0.5, temperature 1 for ImageNet.
    """
    return batch_mean(dkd_per_image(logit_s, logit_t, target, alpha, beta, temperature), weights)
