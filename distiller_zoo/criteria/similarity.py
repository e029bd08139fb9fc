"""SP: images that are similar for the teacher become similar for the student."""
import torch.nn.functional as F
from torch import nn


class Similarity(nn.Module):
    """Tung and Mori, ICCV 2019, Similarity-Preserving Knowledge Distillation, arXiv:1907.09682."""

    def forward(self, g_s: list, g_t: list):
        """Lists of features (N, ...) -> list of scalars: squared difference of the Gram matrices over N^2."""
        return [(self.gram(f_s) - self.gram(f_t)).pow(2).sum() / len(f_s) ** 2
                for f_s, f_t in zip(g_s, g_t, strict=True)]

    def gram(self, f):
        flat = f.flatten(1)
        return F.normalize(flat @ flat.t(), dim=1)
