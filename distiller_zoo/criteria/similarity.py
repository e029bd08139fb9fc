"""SP: images that are similar for the teacher become similar for the student."""
import torch.nn.functional as F
from torch import nn


class Similarity(nn.Module):
    """Squared difference of the Gram matrices of the batch, each row l2-normalised.

    Tung and Mori, ICCV 2019, Similarity-Preserving Knowledge Distillation, arXiv:1907.09682.
    Published: weight 3000.
    """

    def forward(self, g_s: list, g_t: list):
        """Lists of features (N, ...), paired in order -> list of scalars, divided by N^2."""
        return [(self.gram(f_s) - self.gram(f_t)).pow(2).sum() / len(f_s) ** 2
                for f_s, f_t in zip(g_s, g_t, strict=True)]

    def gram(self, f):
        flat = f.flatten(1)
        return F.normalize(flat @ flat.t(), dim=1)
