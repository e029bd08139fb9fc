"""SDD: soft labels of regions of the image, those that disagree with the whole counted twice."""
import torch
import torch.nn.functional as F
from torch import nn

from .dkd import dkd_rows

FINEST = 4      # cells a side


def regional_logits(features, classifier: nn.Linear, scales: list):
    """The map before pooling (N, C, H, W) -> logits (N, classes, regions), for SDDLoss.

    They are the classifier's logits for the average of each region.
    scales: of 1, 2, 4, how many cells a side; the regions come scale by scale, row by row.
    """
    cells = F.adaptive_avg_pool2d(features, FINEST)
    regions = [F.avg_pool2d(cells, FINEST // scale).flatten(2) for scale in scales]
    return classifier(torch.cat(regions, 2).transpose(1, 2)).transpose(1, 2)


class SDDLoss(nn.Module):
    """Soft labels of regions of the image.

    A region counts twice where the teacher is right in it and wrong on the whole image, or the other way round.
    base: 'kd', or 'dkd', which has alpha and beta.
    Wei et al., CVPR 2024, Scale Decoupled Distillation, arXiv:2403.13512.
    Published: weight 0.9, base kd, temperature 4.
    """

    def __init__(self, base: str = 'kd', temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0):
        super().__init__()
        self.base, self.temperature, self.alpha, self.beta = base, temperature, alpha, beta

    def forward(self, logits_s, logits_t, target):
        """Logits of both nets, from regional_logits with the whole image first, and target (N,) -> scalar."""
        n, _, regions = logits_s.shape
        right = logits_t.argmax(1) == target[:, None]
        weight = 1 + (right != right[:, :1]).to(logits_s.dtype)
        rows_s, rows_t = (logits.transpose(1, 2).flatten(0, 1) for logits in (logits_s, logits_t))
        rows = self.rows(rows_s, rows_t, target.repeat_interleave(regions))
        return (weight.flatten() * rows).sum() / (n * regions)

    def rows(self, logits_s, logits_t, target):
        if self.base == 'dkd':
            return dkd_rows(logits_s, logits_t, target, self.alpha, self.beta, self.temperature)
        log_p_s, log_p_t = (F.log_softmax(logits / self.temperature, dim=1) for logits in (logits_s, logits_t))
        return self.temperature ** 2 * (log_p_t.exp() * (log_p_t - log_p_s)).sum(1)
