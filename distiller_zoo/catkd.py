"""CAT-KD: where in the image each class is seen, by the student as by the teacher."""
import torch
import torch.nn.functional as F
from torch import nn

from helper.cli import number

from .base import Distiller


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


class CATKDDistiller(Distiller):
    """The student keeps the bias of its classifier, which the published code takes away."""

    title = 'CAT-KD'
    paper = 'Guo et al., CVPR 2023, arXiv:2304.12777'
    uses = 'the map before pooling, both classifiers'
    needs = ('map',)
    published = {'alpha': 0.0, 'beta': 15.0, 'cat_resolution': 2}
    published_imagenet = {'beta': 0.5, 'cat_resolution': 4}
    float32 = True

    @classmethod
    def add_arguments(cls, add):
        add('--cat_resolution', type=number(int, low=1, high=512),
            help='size to which the activation maps are pooled; not given: 2, for ImageNet 4')
        add('--cat_normalize', action='store_true', help='compare the normalised maps')

    def build(self, opt, data, shapes_s, shapes_t):
        self.check_heads(opt, shapes_s, shapes_t)
        self.criterion = CATKDLoss(opt.cat_resolution, opt.cat_normalize)

    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(*(activation_maps(out.map, net.get_classifier())
                                for out, net in ((out_s, self.student), (out_t, self.teacher))))
