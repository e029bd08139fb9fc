"""The method nd; its loss is in criteria/nd.py."""
import torch
from torch import nn

from helper import distributed

from .base import Distiller, Spec, check_classes, in_float32, is_imagenet
from .criteria.nd import NDConnector, NDLoss


class NDDistiller(Distiller):
    """KD++: soft labels, which grow over the first epochs, and the loss of norm and direction, which does not."""

    spec = Spec(
        title='ND', paper='Wang et al., 2023, arXiv:2305.17007', uses="embedding; the teacher's mean of each class",
        published={'alpha': 3.5, 'beta': 2.0, 'kl_warmup_epochs': 20},
        published_imagenet={'alpha': 2.5, 'beta': 1.0, 'kd_T': 1.0, 'kl_warmup_epochs': 5},
        needs=('embedding',), reads_teacher=True, features_only=True, needs_class=True)

    def build(self, opt, data, shapes_s, shapes_t):
        check_classes(data, f'--distill {opt.distill}', 'give each class at least one')
        (width_s, ), (width_t, ) = shapes_s.embedding, shapes_t.embedding
        self.connector = nn.Identity()
        if width_s != width_t:
            self.connector = NDConnector(width_s, width_t)
            if is_imagenet(opt):
                for p in self.connector.linear.parameters():
                    nn.init.normal_(p, std=0.01)
        self.criterion = NDLoss(torch.ones(data.num_classes, width_t))      # replaced in prepare

    @torch.no_grad()
    def prepare(self, data):
        """The centres: the teacher's mean embedding of each class's training images, without augmentation."""
        sums, counts = torch.zeros_like(self.criterion.centres), torch.zeros_like(self.criterion.centres[:, 0])
        for images, target, _ in data.unaugmented_loader():
            sums.index_add_(0, target, self.teacher.outputs(images).embedding)
            counts.index_add_(0, target, torch.ones_like(target, dtype=counts.dtype))
        self.criterion.centres.copy_(distributed.total(sums) / distributed.total(counts)[:, None].clamp(min=1))

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(self.connector(out_s.embedding), out_t.embedding, target)
