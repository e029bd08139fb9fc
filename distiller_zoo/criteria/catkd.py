"""CAT-KD, class attention transfer."""
import torch
import torch.nn.functional as F
from torch import nn


def activation_maps(features, classifier: nn.Linear):
    """The map before pooling (N, C, H, W) -> class activation maps (N, classes, H, W), without the classifier's bias.
    """
    return torch.einsum('nchw,kc->nkhw', features, classifier.weight)


class CATKDLoss(nn.Module):
    """Mean squared error of the class activation maps, average-pooled to resolution x resolution.

    normalize: l2-normalise each map first.
    Guo et al., CVPR 2023, Class Attention Transfer Based Knowledge Distillation, arXiv:2304.12777.
    Published: weight 15, resolution 2 for CIFAR-100; weight 0.5, resolution 4 for ImageNet. The paper tunes the weight
    for each pair of nets; docs/methods.md lists them.
    """

    def __init__(self, resolution: int = 2, normalize: bool = False):
        super().__init__()
        self.resolution, self.normalize = resolution, normalize

    def forward(self, cam_s, cam_t):
        """Class activation maps (N, classes, H, W) of both nets, from activation_maps -> scalar."""
        s, t = (F.adaptive_avg_pool2d(cam, self.resolution).flatten(2) for cam in (cam_s, cam_t))
        if self.normalize:
            s, t = F.normalize(s, dim=2), F.normalize(t, dim=2)
        return F.mse_loss(s, t)
