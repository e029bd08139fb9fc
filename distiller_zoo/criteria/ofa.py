"""OFA-KD: every stage of the student learns the teacher's logits through a head of its own, whatever kind of net the
teacher is."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvBN


class ExitHead(nn.Sequential):
    """The trained part of OFA-KD, one for each stage: separable convolutions, pooling, a linear layer.

    Convolutions of stride 2 double the channels c until the map has shrunk from `size` to last_size, the size of the
    last stage; a 1x1 convolution gives `width` channels. (N, c, H, W) -> logits (N, num_classes).
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
    """- ((1 + p_t)^gamma - 1) log p_s for the true class, - p_t log p_s for each other; the mean over the batch.

    logits (N, classes), target (N,) -> scalar. With the cross-entropy, the true class has the paper's weight of
    (1 + p_t)^gamma: the surer the teacher is, the more it counts. The losses of the student's own logits and of every
    ExitHead are summed.
    Hao et al., NeurIPS 2023, One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation,
    arXiv:2310.19444.
    Published: weight 1; gamma is chosen for each pair of nets, gamma 1.5 by default of --distill ofa.
    """
    p_t = F.softmax(logits_t / temperature, 1)
    true = torch.arange(p_t.shape[1], device=target.device) == target[:, None]      # one_hot would wait for the device
    weight = torch.where(true, (1 + p_t) ** gamma - 1, p_t)
    return -(weight * F.log_softmax(logits_s / temperature, 1)).sum(1).mean()
