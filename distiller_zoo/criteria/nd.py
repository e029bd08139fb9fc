"""KD++: norm and direction of the embedding."""
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class NDConnector(nn.Sequential):
    """The trained part of KD++ for unequal widths, batch norm, dropout, linear layer: (N, c_s) -> (N, c_t)."""

    def __init__(self, c_s: int, c_t: int, dropout: float = 0.5):
        super().__init__(OrderedDict(bn=nn.BatchNorm1d(c_s), dropout=nn.Dropout(dropout), linear=nn.Linear(c_s, c_t)))
        nn.init.zeros_(self.linear.bias)


class NDLoss(nn.Module):
    """1 - f_s . e / max(|f_s|, |f_t|), e the unit vector to the centre of the sample's class, mean over the batch.

    So the student's embedding turns to the centre, and grows where it is shorter than the teacher's. No gradient passes
    through |f_s| there. Two embeddings of 0, or a centre of 0, give 1.
    centres: (classes, C), the teacher's mean embedding of each class.
    Wang et al., 2023, Improving Knowledge Distillation via Regularizing Feature Norm and Direction, arXiv:2305.17007.
    Published: weight 2, beside soft labels of weight 3.5; weight 1 for ImageNet, beside soft labels of weight 2.5 with
    T 1.
    """

    def __init__(self, centres):
        super().__init__()
        self.register_buffer('centres', centres)

    def forward(self, f_s, f_t, target):
        """Embeddings (N, C), the student's from NDConnector where its width is another one; target (N,) -> scalar."""
        projection = (f_s * F.normalize(self.centres, dim=1)[target]).sum(1)
        norm_s, norm_t = (torch.linalg.vector_norm(f, dim=1) for f in (f_s, f_t))
        longer = torch.where(norm_s >= norm_t, norm_s, norm_t)
        return 1 - (projection / longer.clamp(min=torch.finfo(f_s.dtype).tiny)).mean()
