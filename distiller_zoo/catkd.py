"""The method catkd; its loss is in criteria/catkd.py."""
from helper.cli import number

from .base import Distiller, Spec, check_heads, in_float32
from .criteria.catkd import CATKDLoss, activation_maps


class CATKDDistiller(Distiller):
    """The student keeps the bias of its classifier, which the authors' code removes."""

    spec = Spec(
        title='CAT-KD', paper='Guo et al., CVPR 2023, arXiv:2304.12777',
        uses='the map before pooling, both classifiers', published={'alpha': 0.0, 'beta': 15.0, 'cat_resolution': 2},
        published_imagenet={'beta': 0.5, 'cat_resolution': 4}, needs=('map',))

    @classmethod
    def add_arguments(cls, add):
        add('--cat_resolution', type=number(int, low=1, high=512),
            help='size to which the activation maps are pooled; not given: 2, for ImageNet 4')
        add('--cat_normalize', action='store_true', help='compare the normalised maps')

    def build(self, opt, data, shapes_s, shapes_t):
        check_heads(opt, [('--model_s', opt.model_s, self.student, shapes_s),
                          ('--path-t', opt.model_t, self.teacher, shapes_t)])
        self.criterion = CATKDLoss(opt.cat_resolution, opt.cat_normalize)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(*(activation_maps(out.map, net.get_classifier())
                                for out, net in ((out_s, self.student), (out_t, self.teacher))))
