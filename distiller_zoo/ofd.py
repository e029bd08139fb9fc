"""OFD: the student's pre-activations learn the teacher's, where those pass the ReLU or the student's are too large."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from .base import Distiller, PairError
from .layers import ConvBN


@torch.no_grad()
def ofd_margin(bn: nn.BatchNorm2d) -> torch.Tensor:
    """(C,): the mean of the negative part of what a batch norm gives, a normal distribution for each channel.

    Where negative values are rarer than one in a thousand, three deviations below 0.
    """
    mean, deviation = bn.bias, bn.weight.abs()
    normal = torch.distributions.Normal(0.0, 1.0)
    z = -mean / deviation.clamp(min=1e-12)
    negative = normal.cdf(z)
    density = (-z ** 2 / 2).exp() / math.sqrt(2 * math.pi)
    return torch.where(negative > 0.001, mean - deviation * density / negative.clamp(min=1e-12), -3 * deviation)


class OFDLoss(nn.Module):
    """Heo et al., ICCV 2019, A Comprehensive Overhaul of Feature Distillation, arXiv:1904.01866.

    margins: (C,) of each stage. The last stage counts twice as much as the one before it, and so on.
    """

    def __init__(self, margins: list):
        super().__init__()
        for i, margin in enumerate(margins):
            self.register_buffer(f'margin{i}', margin.view(1, -1, 1, 1))

    def forward(self, feats_s: list, feats_t: list):
        """Lists of pre-activations (N, C, H, W), shallow to deep -> scalar.

        The teacher's are average-pooled to the student's size.
        """
        last = len(feats_s) - 1
        return sum(self.pair(f, g, getattr(self, f'margin{i}')) / 2 ** (last - i)
                   for i, (f, g) in enumerate(zip(feats_s, feats_t, strict=True)))

    def pair(self, x, g, margin):
        if x.shape[-1] != g.shape[-1]:
            g = F.adaptive_avg_pool2d(g, x.shape[-1])
        goal = torch.maximum(g, margin)
        counts = (g > 0) | (x > goal)       # a negative goal is only an upper bound
        return ((x - goal).pow(2) * counts).sum() / len(x)


class OFDDistiller(Distiller):
    title = 'OFD'
    paper = 'Heo et al., ICCV 2019, arXiv:1904.01866'
    uses = 'stages before their ReLU'
    needs = ('feats',)
    published = {'alpha': 0.0, 'beta': 0.001}
    published_imagenet = {'beta': 0.0001}
    preact_s = preact_t = True
    float32 = True

    def build(self, opt, data, shapes_s, shapes_t):
        self.check_maps(opt, shapes_s.feats[1:-1], shapes_t.feats[1:-1])
        self.check_preact(opt, data)
        try:
            norms = self.teacher.get_bn_before_relu()
        except (NotImplementedError, AttributeError) as error:
            raise PairError(f'--path-t: --distill ofd needs the batch norm before the last ReLU of each stage of '
                            f'{opt.model_t}; {error}') from error
        self.stages = min(len(shapes_s.feats[1:-1]), len(norms))        # from the deep end
        self.connectors = nn.ModuleList(
            ConvBN(s[0], t[0]) for s, t in zip(self.deepest(shapes_s), self.deepest(shapes_t), strict=True))
        for connector in self.connectors:
            nn.init.normal_(connector.conv.weight, std=math.sqrt(2 / connector.conv.out_channels))
        self.criterion = OFDLoss([ofd_margin(bn) for bn in norms[-self.stages:]])

    def deepest(self, out):
        """The stages that are compared, shallow to deep."""
        return out.feats[-1 - self.stages:-1]

    def method_loss(self, out_s, out_t, target, index):
        maps_s = [connector(f) for connector, f in zip(self.connectors, self.deepest(out_s), strict=True)]
        return self.criterion(maps_s, self.deepest(out_t))
