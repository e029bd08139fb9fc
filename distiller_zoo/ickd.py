"""The method ickd; its loss is in criteria/ickd.py."""
from .base import Distiller, Spec, check_maps, in_float32, is_imagenet
from .criteria.common import ConvBN
from .criteria.ickd import ICKDLoss


class ICKDDistiller(Distiller):
    spec = Spec(
        title='ICKD', paper='Liu et al., ICCV 2021, arXiv:2202.03680', uses='feats[-2]',
        published={'alpha': 0.0, 'beta': 2.5}, published_imagenet={'beta': 1.0}, needs=('feats',),
        features_only=True)

    def build(self, opt, data, shapes_s, shapes_t):
        check_maps(opt, [shapes_s.feats[-2]], [shapes_t.feats[-2]])
        self.connector = ConvBN(shapes_s.feats[-2][0], shapes_t.feats[-2][0], 3 if is_imagenet(opt) else 1)
        self.criterion = ICKDLoss()

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(self.connector(out_s.feats[-2]), out_t.feats[-2])
