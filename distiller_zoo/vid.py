"""The method vid; its loss is in criteria/vid.py."""
from torch import nn

from .base import Distiller, Spec, check_maps
from .criteria.vid import VIDLoss


class VIDDistiller(Distiller):
    spec = Spec(
        title='VID', paper='Ahn et al., CVPR 2019, arXiv:1904.05835', uses='stage features, in order',
        published={'beta': 1.0}, needs=('feats',), features_only=True)

    def build(self, opt, data, shapes_s, shapes_t):
        check_maps(opt, shapes_s.feats[1:-1], shapes_t.feats[1:-1])
        self.criteria = nn.ModuleList(VIDLoss(s[0], t[0], t[0])
                                      for s, t in zip(shapes_s.feats[1:-1], shapes_t.feats[1:-1], strict=False))

    def method_loss(self, out_s, out_t, target, index):
        return sum(criterion(f_s, f_t)
                   for criterion, f_s, f_t in zip(self.criteria, out_s.feats[1:-1], out_t.feats[1:-1], strict=False))
