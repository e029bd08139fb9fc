"""OFA-KD, one for all, between nets of different architectures."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import ConvBN, true_class_mask


class SeparableConv(nn.Sequential):
    """A depthwise 3x3 and a 1x1 convolution, batch norm, ReLU: (N, c_in, H, W) -> (N, c_out, H/stride, W/stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__(nn.Conv2d(c_in, c_in, 3, stride, padding=1, groups=c_in, bias=False), ConvBN(c_in, c_out),
                         nn.ReLU(inplace=True))


class ExitHead(nn.Sequential):
    """The trained part of OFA-KD, one for each stage of a convolutional net.

    Pairs of separable convolutions, the first of stride 2, double the channels c until the map has shrunk from `size`
    to last_size, the size of the last stage; the last pair outputs `width` channels. A map of last_size gets a 1x1
    convolution to `width` instead. Then come the mean over space and a linear layer.
    (N, c, H, W) -> logits (N, num_classes).
    """

    def __init__(self, c: int, size: int, last_size: int, width: int, num_classes: int):
        layers = []
        while size > last_size:
            size = -(-size // 2)
            c_out = 2 * c if size > last_size else width
            layers += [SeparableConv(c, c, 2), SeparableConv(c, c_out, 1)]
            c = c_out
        super().__init__(*(layers or [nn.Conv2d(c, width, 1)]), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


def ofa_loss(logits_s: Tensor, logits_t: Tensor, target: Tensor, gamma: float, temperature: float = 1.0) -> Tensor:
    """-((1 + p_t)^gamma - 1) log p_s for the true class, -p_t^gamma log p_s for every other; averaged over the batch.

    logits (N, classes), target (N,) -> scalar. gamma 1 is the soft cross-entropy; a larger one weakens the other
    classes. Sum the losses of the student's logits and of every ExitHead.
    Hao et al., NeurIPS 2023, One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation,
    arXiv:2310.19444; as its published code computes it.
    Published: weight 1, gamma 1 for CIFAR-100; weight 1, gamma 1.5 for ImageNet.
    """
    p_t = F.softmax(logits_t / temperature, 1)
    weight = torch.where(true_class_mask(p_t, target), (1 + p_t) ** gamma - 1, p_t ** gamma)
    return -(weight * F.log_softmax(logits_s / temperature, 1)).sum(1).mean()
