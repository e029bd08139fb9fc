"""WKD-L: the cheapest way to move the student's probabilities onto the teacher's, between classes that look alike."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from helper import distributed
from helper.cli import MOST_EPOCHS, number
from helper.errors import UserError

from .base import Distiller
from .nkd import true_class_loss


@torch.no_grad()
def cka_cost(features):
    """(classes, samples, channels) -> (classes, classes): 1 - linear CKA (Kornblith et al., ICML 2019,
    arXiv:1905.00414), sample by sample. The features are centred in place."""
    x = features.sub_(features.mean(1, keepdim=True))
    n, at_once = len(x), max(1, 2**26 // x.shape[2] ** 2)      # products of at most 256 MiB
    products = x.new_zeros(n, n)
    for i in range(n):
        for first in range(i, n, at_once):
            products[i, first:first + at_once] = (x[i].t() @ x[first:first + at_once]).pow(2).sum((1, 2))
    norms = products.diagonal().sqrt()
    products = products.triu() + products.triu(1).t()
    return 1 - products / (norms[:, None] * norms).clamp(min=1e-12)


def transport_cost(distance):
    """Distances between classes -> costs below 1."""
    return 1 - torch.exp(-distance)


def weight_factor(epoch: int, epochs: int, start: int) -> float:
    """1 up to epoch `start`; from there half a cosine to 0 in the last one."""
    return (1 + math.cos(math.pi * max(0, epoch - start) / max(1, epochs - start))) / 2


class WKDLogitLoss(nn.Module):
    """Lv, Yang and Li, NeurIPS 2024, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
    Distillation, arXiv:2412.08139.

    cost: (classes, classes), of moving probability from one class to another. The distance is that of `iterations` of
    Sinkhorn's algorithm, regularised by reg; the gradient goes through all of them.
    """

    def __init__(self, cost, temperature: float, weight: float, reg: float = 0.05, iterations: int = 10):
        super().__init__()
        self.temperature, self.reg, self.iterations = temperature, reg, iterations
        self.register_buffer('cost', cost)
        self.register_buffer('weight', torch.tensor(float(weight)), persistent=False)

    def forward(self, logits_s, logits_t, target):
        """Logits (N, classes), target (N,) -> scalar: the true class as in nkd + weight * distance of the others."""
        return true_class_loss(logits_s, logits_t, target) + self.weight * self.distance(logits_s, logits_t, target)

    def distance(self, logits_s, logits_t, target):
        # The true class is left out by a probability of 0, which Sinkhorn's algorithm keeps.
        true = torch.zeros_like(logits_s, dtype=torch.bool).scatter_(1, target[:, None], True)
        p, q = (F.softmax((logits / self.temperature).masked_fill(true, -torch.inf), dim=1)
                for logits in (logits_s, logits_t))
        cost = F.relu(self.cost) + 1e-8
        kernel = torch.exp(-cost / self.reg)
        u = (~true).to(p.dtype) / (p.shape[1] - 1)
        for _ in range(self.iterations):
            v = q / (u @ kernel + 1e-8)
            u = p / (v @ kernel.t() + 1e-8)
        return (u * (v @ (kernel * cost).t())).sum(1).mean()


class WKDLDistiller(Distiller):
    title = 'WKD-L'
    paper = 'Lv, Yang and Li, NeurIPS 2024, arXiv:2412.08139'
    uses = "logits; the teacher's maps of the training set"
    needs_class = True
    published = {'alpha': 0.0, 'beta': 1.0, 'kd_T': 8.0, 'wkdl_weight': 600.0, 'wkdl_decay_from': 150}
    published_imagenet = {'kd_T': 2.0, 'wkdl_weight': 30.0, 'wkdl_decay_from': 0}
    float32 = True
    reads_teacher = True
    scheduled_over_epochs = True

    @classmethod
    def add_arguments(cls, add):
        add('--wkdl_weight', type=number(float, low=0),
            help='weight of the distance; not given: 600, for ImageNet 30')
        add('--wkdl_decay_from', type=number(int, low=0, high=MOST_EPOCHS),
            help='epoch after which that weight falls, to 0 in the last; not given: 150, for ImageNet 0')
        add('--wkdl_cost', choices=('cka', 'classifier'), default='cka',
            help="classes are alike by the teacher's maps (ImageNet: logits) of the training set, or by its classifier")

    def build(self, opt, data, shapes_s, shapes_t):
        self.full_weight, self.decay_from = opt.wkdl_weight, opt.wkdl_decay_from
        self.by_features, self.of_logits = opt.wkdl_cost == 'cka', 'imagenet' in opt.dataset
        counts = torch.bincount(data.labels, minlength=data.num_classes)
        if self.by_features and not counts.min():
            raise UserError(f'--wkdl_cost cka: class {counts.argmin().item()}, counted from 0, has no training image; '
                            f'give --wkdl_cost classifier')
        rows = F.normalize(self.teacher.get_classifier().weight.detach(), dim=1)
        cost = transport_cost(1 - rows @ rows.t())      # until prepare, where another is asked for
        self.criterion = WKDLogitLoss(cost, opt.kd_T, opt.wkdl_weight)

    def prepare(self, data):
        if self.by_features:
            self.criterion.cost.copy_(transport_cost(cka_cost(self.class_features(data))))

    @torch.no_grad()
    def class_features(self, data):
        """The teacher's features of the training images as they are: (classes, samples, channels).

        The s-th samples of all classes stand together in the order of the data; of each class as many images as the
        smallest has. A sample is a position of the map that pooling sees, of ImageNet an image's logits.
        """
        labels = data.labels
        counts = torch.bincount(labels, minlength=data.num_classes)
        by_class, place = labels.argsort(stable=True), torch.empty_like(labels)
        place[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
        features = None
        for images, target, index in data.in_order():
            out = self.teacher.outputs(images)
            samples = out.logits[:, None] if self.of_logits else out.map.flatten(2).transpose(1, 2)
            if features is None:
                features = samples.new_zeros(data.num_classes, int(counts.min()), *samples.shape[1:])
            places = place.to(index.device)[index]
            kept = places < features.shape[1]
            features[target[kept], places[kept]] = samples[kept]
        # Each process has filled in its own images; the others' are zeros there.
        return distributed.mean(features).mul_(distributed.world_size()).flatten(1, 2)

    def begin_epoch(self, epoch, epochs):
        super().begin_epoch(epoch, epochs)
        self.criterion.weight.fill_(self.full_weight * weight_factor(epoch, epochs, self.decay_from))

    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.logits, out_t.logits, target)
