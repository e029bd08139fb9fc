"""The method ofd; its loss is in criteria/ofd.py."""
import math

from torch import nn

from .base import Distiller, PairError, Spec, check_maps, check_preact, in_float32
from .criteria.common import ConvBN
from .criteria.ofd import OFDLoss, ofd_margin


class OFDDistiller(Distiller):
    spec = Spec(
        title='OFD', paper='Heo et al., ICCV 2019, arXiv:1904.01866', uses='stages before their ReLU',
        published={'alpha': 0.0, 'beta': 0.001}, published_imagenet={'beta': 0.0001}, needs=('feats',), preact_s=True,
        preact_t=True, features_only=True)

    def build(self, opt, data, shapes_s, shapes_t):
        check_maps(opt, shapes_s.feats[1:-1], shapes_t.feats[1:-1])
        check_preact(self, opt, data)
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

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        maps_s = [connector(f) for connector, f in zip(self.connectors, self.deepest(out_s), strict=True)]
        return self.criterion(maps_s, self.deepest(out_t))
