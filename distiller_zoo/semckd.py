"""The method semckd; its loss is in criteria/semckd.py."""
import torch

from helper import distributed

from .base import Distiller, Spec, check_maps
from .criteria.semckd import SelfA, SemCKDLoss


class SemCKDDistiller(Distiller):
    """Compares every student stage with every teacher stage, weighted by learnt attention."""

    spec = Spec(
        title='SemCKD', paper='Chen et al., AAAI 2021, arXiv:2012.03236', uses='stage features, all pairs',
        published={'beta': 400.0},
        published_imagenet={'beta': 50.0},
        needs=('feats',),
        features_only=True,
        drop_last=True,  # the MLPs' input width is the batch size
        own_buffers=('attention_sum', 'attention_batches'))


    def build(self, opt, data, shapes_s, shapes_t):
        check_maps(opt, shapes_s.feats[1:-1], shapes_t.feats[1:-1])
        channels_s = [shape[0] for shape in shapes_s.feats[1:-1]]
        channels_t = [shape[0] for shape in shapes_t.feats[1:-1]]
        self.attention = SelfA(len(channels_s), len(channels_t), opt.batch_size, channels_s, channels_t)
        self.criterion = SemCKDLoss()
        # The sum of the batches' mean attention in this epoch and the number of batches, for pictures().
        self.register_buffer('attention_sum', torch.zeros(len(channels_s), len(channels_t)))
        self.register_buffer('attention_batches', torch.zeros(()))

    def method_loss(self, out_s, out_t, target, index):
        proj_s, target_t, weight = self.attention(out_s.feats[1:-1], out_t.feats[1:-1])
        with torch.no_grad():
            self.attention_sum += weight.mean(0)
            self.attention_batches += 1
        return self.criterion(proj_s, target_t, weight)

    def checkpoint(self):
        # The authors' code reads the key 'attention'.
        return {**super().checkpoint(), 'attention': self.attention.state_dict()}

    def pictures(self):
        """The mean attention of the epoch: rows are student stages, columns teacher stages. Resets the mean."""
        mean = distributed.mean(self.attention_sum / self.attention_batches.clamp(min=1))
        self.attention_sum.zero_()
        self.attention_batches.zero_()
        return {'attention': mean.tolist()}
