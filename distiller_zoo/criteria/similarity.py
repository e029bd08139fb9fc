"""SP, similarity preserving."""
from torch import nn

from .common import normalized_gram


class Similarity(nn.Module):
    """Squared difference of the Gram matrices of the batch, each row l2-normalised.

    Tung and Mori, ICCV 2019, Similarity-Preserving Knowledge Distillation, arXiv:1907.09682.
    Published: weight 3000.
    """

    def forward(self, g_s: list, g_t: list):
        """Lists of features (N, ...), paired in order -> a list of scalars, divided by N^2."""
        grams = ([normalized_gram(f.flatten(1)) for f in pair] for pair in zip(g_s, g_t, strict=True))
        return [(gram_s - gram_t).pow(2).sum() / len(gram_s) ** 2 for gram_s, gram_t in grams]
