"""CAT-KD: where in the image each class is seen, by the student as by the teacher."""
import torch
import torch.nn.functional as F
from torch import nn


def activation_maps(features, classifier: nn.Linear):
    """The map before pooling (N, C, H, W) -> class activation maps (N, classes, H, W), without the classifier's bias.
    """
    return torch.einsum('nchw,kc->nkhw', features, classifier.weight)


class CATKDLoss(nn.Module):
    """Guo et al., CVPR 2023, Class Attention Transfer Based Knowledge Distillation, arXiv:2304.12777.

    The maps are average-pooled to resolution x resolution, and if normalize divided by their length.
    """

    def __init__(self, resolution: int = 2, normalize: bool = False):
        super().__init__()
        self.resolution, self.normalize = resolution, normalize

    def forward(self, cam_s, cam_t):
        """(N, classes, H, W) of each net -> scalar."""
        s, t = (F.adaptive_avg_pool2d(cam, self.resolution).flatten(2) for cam in (cam_s, cam_t))
        if self.normalize:
            s, t = F.normalize(s, dim=2), F.normalize(t, dim=2)
        return F.mse_loss(s, t)
