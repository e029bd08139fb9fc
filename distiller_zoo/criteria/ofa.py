"""OFA-KD, one for all, between nets of different architectures."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import ConvBN, true_class_mask


class ExitHead(nn.Sequential):
    """The trained part of OFA-KD, one for each stage: separable convolutions, pooling, a linear layer.

    Convolutions of stride 2 double the channels c until the map has shrunk from `size` to last_size, the size of the
    last stage. A 1x1 convolution outputs `width` channels. (N, c, H, W) -> logits (N, num_classes).
    """

    def __init__(self, c: int, size: int, last_size: int, width: int, num_classes: int):
        layers = []
        while size > last_size:
            layers += [nn.Conv2d(c, c, 3, stride=2, padding=1, groups=c, bias=False), ConvBN(c, 2 * c, 1),
                       nn.ReLU(inplace=True)]
            c, size = 2 * c, -(-size // 2)
        super().__init__(*layers, ConvBN(c, width, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))


def ofa_loss(logits_s: Tensor, logits_t: Tensor, target: Tensor, gamma: float, temperature: float = 1.0) -> Tensor:
    """-((1 + p_t)^gamma - 1) log p_s for the true class, -p_t log p_s for each other class; averaged over the batch.

    logits (N, classes), target (N,) -> scalar. With the cross-entropy, the true class has the paper's weight
    (1 + p_t)^gamma, which grows with the teacher's confidence. Sum the losses of the student's logits and of every
    ExitHead.
    Hao et al., NeurIPS 2023, One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation,
    arXiv:2310.19444.
    Published: weight 1; gamma differs between pairs of nets, gamma 1.5 by default of --distill ofa.
    """
    p_t = F.softmax(logits_t / temperature, 1)
    weight = torch.where(true_class_mask(p_t, target), (1 + p_t) ** gamma - 1, p_t)
    return -(weight * F.log_softmax(logits_s / temperature, 1)).sum(1).mean()
