"""EA-KD, a weight for each image by the entropy of both nets' predictions."""
import torch
import torch.nn.functional as F
from torch import Tensor


def entropy_weights(logits_s: Tensor, logits_t: Tensor, temperature: float = 3.0, bound: float = 100.0) -> Tensor:
    """Logits (N, classes) -> weights (N,) without gradient: (H(t) + H(t) H(s) / bound) / 2, for the argument `weights`.

    H: the entropy of the probabilities at `temperature`. bound: log(classes), the largest entropy; the published runs
    of KD and DKD on CIFAR-100 have 100. The weights do not sum to 1, so the loss grows with the entropy.
    Su et al., ICCV 2025, EA-KD: Entropy-based Adaptive Knowledge Distillation, arXiv:2311.13621.
    """
    with torch.no_grad():
        entropy_s, entropy_t = (entropy(F.softmax(logits / temperature, dim=1)) for logits in (logits_s, logits_t))
        return (entropy_t + entropy_t * entropy_s / bound) / 2


def entropy(p):
    """Probabilities (N, classes) -> (N,)."""
    return -(p * torch.log(p + 1e-10)).sum(1)
