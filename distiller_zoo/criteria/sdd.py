"""SDD, scale decoupled distillation."""
import torch
import torch.nn.functional as F
from torch import nn

from .dkd import dkd_per_image

FINEST = 4      # the finest scale, in cells a side


def regional_logits(features, classifier: nn.Linear, scales: list):
    """The map before pooling (N, C, H, W) -> the classifier's logits (N, classes, regions) for each region's average.

    scales: a list of 1, 2 and 4, the cells a side. The regions are ordered by scale, then by row.
    """
    cells = F.adaptive_avg_pool2d(features, FINEST)
    regions = [F.avg_pool2d(cells, FINEST // scale).flatten(2) for scale in scales]
    return classifier(torch.cat(regions, 2).transpose(1, 2)).transpose(1, 2)


class SDDLoss(nn.Module):
    """Soft labels of regions of the image.

    A region has weight 2 where the teacher is right in either the region or the whole image, but not in both, else 1.
    base: 'kd', or 'dkd' with alpha and beta.
    Wei et al., CVPR 2024, Scale Decoupled Distillation, arXiv:2403.13512.
    Published: weight 0.9, base kd, temperature 4.
    """

    def __init__(self, base: str = 'kd', temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0):
        super().__init__()
        self.base, self.temperature, self.alpha, self.beta = base, temperature, alpha, beta

    def forward(self, logits_s, logits_t, target):
        """Logits (N, classes, regions) of both nets, with the whole image first, and target (N,) -> scalar."""
        n, _, regions = logits_s.shape
        is_right = logits_t.argmax(1) == target[:, None]
        weight = 1 + (is_right != is_right[:, :1]).to(logits_s.dtype)
        rows_s, rows_t = (logits.transpose(1, 2).flatten(0, 1) for logits in (logits_s, logits_t))
        loss = self.loss_per_region(rows_s, rows_t, target.repeat_interleave(regions))
        return (weight.flatten() * loss).sum() / (n * regions)

    def loss_per_region(self, logits_s, logits_t, target):
        """(N * regions, classes), (N * regions,) -> (N * regions,)."""
        if self.base == 'dkd':
            return dkd_per_image(logits_s, logits_t, target, self.alpha, self.beta, self.temperature)
        log_p_s, log_p_t = (F.log_softmax(logits / self.temperature, dim=1) for logits in (logits_s, logits_t))
        return self.temperature ** 2 * F.kl_div(log_p_s, log_p_t, log_target=True, reduction='none').sum(1)
