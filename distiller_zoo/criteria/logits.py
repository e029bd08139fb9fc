"""Standardised logits, for losses on soft labels."""
from torch import Tensor


def standardize_logits(logits: Tensor) -> Tensor:
    """(N, classes) -> the same with mean 0 and deviation 1 for each image; equal logits become 0.

    Sun et al., CVPR 2024, Logit Standardization in Knowledge Distillation, arXiv:2403.01427.
    """
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (1e-7 + logits.std(1, keepdim=True))
