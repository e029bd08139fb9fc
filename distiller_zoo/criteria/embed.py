"""Matching the features of a teacher: cosine distance and smooth L1."""
import torch.nn.functional as F
from torch import Tensor


def match_loss(f_s: Tensor, f_t: Tensor, cosine: float = 0.9, smooth_l1: float = 0.1) -> Tensor:
    """Features (N, C, ...) of both nets, the student's projected to the teacher's shape -> scalar.

    The mean over samples and positions of the cosine distance along C, and the mean smooth L1 distance, with these
    weights. Ranzinger et al., CVPR 2024, AM-RADIO: Agglomerative Vision Foundation Model, arXiv:2312.06709, equation of
    the loss of spatial features, with its published weights.
    """
    distance = 1 - F.cosine_similarity(f_s, f_t, dim=1).mean()
    return cosine * distance + smooth_l1 * F.smooth_l1_loss(f_s, f_t)
