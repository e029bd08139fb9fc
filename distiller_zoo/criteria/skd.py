"""SKD, streamlined knowledge distillation."""
import torch
import torch.nn.functional as F
from torch import nn

from .kd import distill_kl
from .mlld import shares_up_to_median


def gram_mahalanobis(logits_s, logits_t, tikhonov: float):
    """Logits (N, classes) -> scalar: the mean Mahalanobis length of the rows of the Gram matrices' difference.

    tikhonov is added to the diagonal of the covariance. A row of zeros has no gradient.
    """
    s, t = (F.normalize(logits, dim=1) for logits in (logits_s, logits_t))
    difference = (s @ s.t() - t @ t.t()) / logits_s.shape[1]
    centred = difference - difference.mean(0)
    covariance = centred.t() @ centred / (len(s) - 1) + tikhonov * torch.eye(len(s), dtype=s.dtype, device=s.device)
    lower, _ = torch.linalg.cholesky_ex(covariance)     # cholesky would wait for a GPU
    squares = torch.linalg.solve_triangular(lower, difference.t(), upper=False).pow(2).sum(0)
    return (torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)).mean()


class SKDLoss(nn.Module):
    """Soft labels, plus the Mahalanobis distance of the images' similarities, each times a share of about 0.5.

    The shares are those of mlld.shares_up_to_median. tikhonov: added to the diagonal of the covariance.
    Jeong et al., CVPR 2026, the streamlined knowledge distillation of its published code.
    Published: weight 0.9, temperature 4, tikhonov 0.1 for CIFAR-100; weight 0.9, temperature 1 for ImageNet.
    """

    def __init__(self, temperature: float = 4.0, tikhonov: float = 0.1):
        super().__init__()
        self.temperature, self.tikhonov = temperature, tikhonov

    def parts(self, logits_s, logits_t):
        """Logits (N, classes) -> two scalars: the loss of the soft labels, the distance."""
        image_share, class_share = shares_up_to_median(logits_t)
        return (image_share * distill_kl(logits_s, logits_t, self.temperature),
                class_share * gram_mahalanobis(logits_s, logits_t, self.tikhonov))

    def forward(self, logits_s, logits_t):
        """Logits (N, classes) of both nets -> scalar."""
        return sum(self.parts(logits_s, logits_t))
