"""The method srd; its loss is in criteria/srd.py."""
from torch import nn

from .base import Distiller, Spec, in_float32
from .criteria.srd import SRDLoss


class SRDDistiller(Distiller):
    """Published for ImageNet only, in this form; the values for other data are the same."""

    spec = Spec(
        title='SRD', paper='Miles and Mikolajczyk, AAAI 2024, arXiv:2303.11098', uses='embedding',
        published={'beta': 2.0, 'kd_T': 1.0}, needs=('embedding',), features_only=True,
        pairwise=True)

    def build(self, opt, data, shapes_s, shapes_t):
        self.projector = nn.Linear(*shapes_s.embedding, *shapes_t.embedding)
        self.criterion = SRDLoss()

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(self.projector(out_s.embedding), out_t.embedding)
