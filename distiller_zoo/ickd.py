"""ICKD: the student's channels correlate with each other as the teacher's do."""
import torch.nn.functional as F
from torch import nn

from .base import Distiller
from .layers import ConvBN


class ICKDLoss(nn.Module):
    """Liu et al., ICCV 2021, Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation,
    arXiv:2202.03680; the loss for whole images, ICKD-C, as its code for CIFAR computes it."""

    def forward(self, f_s, f_t):
        """Maps (N, C, H, W), (N, C, H', W') -> scalar: squared difference of the channels' Gram matrices / (C * N)."""
        return (self.gram(f_s) - self.gram(f_t)).pow(2).sum() / (f_s.shape[1] * len(f_s))

    def gram(self, f):
        flat = f.flatten(2)
        return F.normalize(flat @ flat.transpose(1, 2), dim=2)


class ICKDDistiller(Distiller):
    title = 'ICKD'
    paper = 'Liu et al., ICCV 2021, arXiv:2202.03680'
    uses = 'feats[-2]'
    needs = ('feats',)
    published = {'alpha': 0.0, 'beta': 2.5}
    published_imagenet = {'beta': 1.0}
    float32 = True

    def build(self, opt, data, shapes_s, shapes_t):
        self.check_maps(opt, [shapes_s.feats[-2]], [shapes_t.feats[-2]])
        self.connector = ConvBN(shapes_s.feats[-2][0], shapes_t.feats[-2][0], 3 if 'imagenet' in opt.dataset else 1)
        self.criterion = ICKDLoss()

    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(self.connector(out_s.feats[-2]), out_t.feats[-2])
