"""DKD: the two parts of soft labels, of the true class and of the others, weighted separately."""
import torch
import torch.nn.functional as F


def log_pair(log_p, chosen):
    """Log-probabilities (N, classes), chosen (N, 1) -> (N, 2): of the chosen class, and of all others together.

    The others' is a sum of their exponentials, so it stays finite where 1 - p would be 0.
    """
    others = log_p.scatter(1, chosen, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([log_p.gather(1, chosen), others], 1)


def dkd_rows(logit_s, logit_t, target, alpha: float, beta: float, temperature):
    """As dkd_loss, for each image: (N,)."""
    true = torch.zeros_like(logit_s, dtype=torch.bool).scatter_(1, target[:, None], True)

    def parts(logits):
        """log p of (true class, all others) (N, 2), and log p among the others (N, classes - 1)."""
        log_p = F.log_softmax(logits / temperature, dim=1)
        pair = log_pair(log_p, target[:, None])
        return pair, (log_p - pair[:, 1:]).masked_fill(true, 0)

    (binary_s, others_s), (binary_t, others_t) = parts(logit_s), parts(logit_t)
    p_others = others_t.exp().masked_fill(true, 0)
    tckd = F.kl_div(binary_s, binary_t, log_target=True, reduction='none').sum(1)
    nckd = (p_others * (others_t - others_s)).sum(1)
    return temperature ** 2 * (alpha * tckd + beta * nckd)


def dkd_loss(logit_s, logit_t, target, alpha: float, beta: float, temperature):
    """Logits (N, classes), target (N,) -> scalar: alpha * KL of true against other + beta * KL among the others.

    Both are multiplied by temperature^2.
    Zhao et al., CVPR 2022, Decoupled Knowledge Distillation, arXiv:2203.08679.
    Published: weight 1, alpha 1, beta 8, temperature 4 and a warm-up over 20 epochs for CIFAR-100; weight 1, alpha 1,
    beta 0.5, temperature 1 for ImageNet.
    """
    return dkd_rows(logit_s, logit_t, target, alpha, beta, temperature).mean()
