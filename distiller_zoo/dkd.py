"""DKD: the two parts of soft labels, of the true class and of the others, weighted apart."""
import torch
import torch.nn.functional as F

from .base import Distiller


def dkd_loss(logit_s, logit_t, target, alpha: float, beta: float, temperature: float):
    """Logits (N, classes), target (N,) -> scalar: alpha * KL of true against other + beta * KL among the others.

    Zhao et al., CVPR 2022, Decoupled Knowledge Distillation, arXiv:2203.08679.
    """
    true = torch.zeros_like(logit_s, dtype=torch.bool).scatter_(1, target[:, None], True)
    scale = temperature ** 2 / len(target)

    def parts(logits):
        """log p of (true class, all others) (N, 2), and log p among the others (N, classes - 1)."""
        log_p = F.log_softmax(logits / temperature, dim=1)
        log_true, log_other = log_p.gather(1, target[:, None]), log_p.masked_fill(true, -torch.inf)
        log_rest = log_other.logsumexp(1, keepdim=True)
        return torch.cat([log_true, log_rest], 1), (log_p - log_rest).masked_fill(true, 0)

    (binary_s, others_s), (binary_t, others_t) = parts(logit_s), parts(logit_t)
    p_others = others_t.exp().masked_fill(true, 0)
    tckd = F.kl_div(binary_s, binary_t, log_target=True, reduction='sum')
    nckd = (p_others * (others_t - others_s)).sum()
    return scale * (alpha * tckd + beta * nckd)


class DKDDistiller(Distiller):
    """The paper's weights inside the loss, 1 and 8, instead of the soft-label loss: alpha is 0 unless -a is given."""

    title = 'DKD'
    paper = 'Zhao et al., CVPR 2022, arXiv:2203.08679'
    uses = 'logits'
    published = {'alpha': 0.0, 'beta': 1.0}
    float32 = True

    def method_loss(self, out_s, out_t, target, index):
        logits_s, logits_t, temperature = self.soft_labels(out_s, out_t)
        return dkd_loss(logits_s, logits_t, target, 1.0, 8.0, temperature)
