"""OFA-KD: every stage of the student learns the teacher's logits through a head of its own, whatever kind of net the
teacher is."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvBN


class ExitHead(nn.Sequential):
    """A stage's map (N, c, H, W) -> logits (N, classes): separable convolutions of stride 2 that double the channels
    until the map has the size of the last stage, a 1x1 convolution to `width`, average pooling, a linear layer."""

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

    With the cross-entropy, the true class has the paper's weight of (1 + p_t)^gamma: the surer the teacher is, the
    more it counts. logits: (N, classes), target: (N,).
    """
    p_t = F.softmax(logits_t / temperature, 1)
    true = torch.arange(p_t.shape[1], device=target.device) == target[:, None]      # one_hot would wait for the device
    weight = torch.where(true, (1 + p_t) ** gamma - 1, p_t)
    return -(weight * F.log_softmax(logits_s / temperature, 1)).sum(1).mean()
