"""The method wkdl; its loss is in criteria/wkdl.py."""
import torch
import torch.nn.functional as F

from helper import distributed
from helper.cli import MOST_EPOCHS, number

from .base import Distiller, Spec, check_classes, in_float32, is_imagenet
from .criteria.wkdl import WKDLogitLoss, cka_cost, transport_cost, weight_factor


class WKDLDistiller(Distiller):
    spec = Spec(
        title='WKD-L', paper='Lv, Yang and Li, NeurIPS 2024, arXiv:2412.08139',
        uses="logits; the teacher's maps of the training set",
        published={'alpha': 0.0, 'beta': 1.0, 'kd_T': 8.0, 'wkdl_weight': 600.0, 'wkdl_decay_from': 150},
        published_imagenet={'kd_T': 2.0, 'wkdl_weight': 30.0, 'wkdl_decay_from': 0}, reads_teacher=True,
        needs_class=True, scheduled_over_epochs=True, reads_kd_T=True)

    @classmethod
    def add_arguments(cls, add):
        add('--wkdl_weight', type=number(float, low=0),
            help='weight of the Wasserstein distance; not given: 600, for ImageNet 30')
        add('--wkdl_decay_from', type=number(int, low=0, high=MOST_EPOCHS),
            help='epoch after which that weight falls to 0 in the last one; not given: 150, for ImageNet 0')
        add('--wkdl_cost', choices=('cka', 'classifier'), default='cka',
            help="distance of classes: by the teacher's maps (ImageNet: logits) of the training set, or its classifier")

    def build(self, opt, data, shapes_s, shapes_t):
        self.full_weight, self.decay_from = opt.wkdl_weight, opt.wkdl_decay_from
        self.by_features, self.of_logits = opt.wkdl_cost == 'cka', is_imagenet(opt)
        if self.by_features:
            check_classes(data, '--wkdl_cost cka', 'give --wkdl_cost classifier')
        rows = F.normalize(self.teacher.get_classifier().weight.detach(), dim=1)
        cost = transport_cost(1 - rows @ rows.t())      # replaced in prepare with --wkdl_cost
        self.criterion = WKDLogitLoss(cost, opt.kd_T, opt.wkdl_weight)

    def prepare(self, data):
        if self.by_features:
            self.criterion.cost.copy_(transport_cost(cka_cost(self.class_features(data))))

    @torch.no_grad()
    def class_features(self, data):
        """The teacher's features of the unaugmented training images: (classes, samples, channels).

        Each class contributes its first images, as many as the smallest class has. A sample is a position of the map
        before pooling; for ImageNet it is an image's logits.
        """
        labels = data.labels
        counts = torch.bincount(labels, minlength=data.num_classes)
        by_class, rank_in_class = labels.argsort(stable=True), torch.empty_like(labels)
        rank_in_class[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
        features = None
        for images, target, index in data.unaugmented_loader():
            out = self.teacher.outputs(images)
            samples = out.logits[:, None] if self.of_logits else out.map.flatten(2).transpose(1, 2)
            if features is None:
                features = samples.new_zeros(data.num_classes, int(counts.min()), *samples.shape[1:])
            rank = rank_in_class.to(index.device)[index]
            is_used = rank < features.shape[1]
            features[target[is_used], rank[is_used]] = samples[is_used]
        # Each process fills in its own images; the rest is zero, so the sum is the whole.
        return distributed.total(features).flatten(1, 2)

    def begin_epoch(self, epoch, epochs):
        super().begin_epoch(epoch, epochs)
        self.criterion.weight.fill_(self.full_weight * weight_factor(epoch, epochs, self.decay_from))

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.logits, out_t.logits, target)
