"""The method catkd: its flags and published values, and the outputs that feed criteria/catkd.py."""
from helper.cli import number

from .base import Distiller
from .criteria.catkd import CATKDLoss, activation_maps


class CATKDDistiller(Distiller):
    """The student keeps the bias of its classifier, which the published code takes away."""

    title = 'CAT-KD'
    paper = 'Guo et al., CVPR 2023, arXiv:2304.12777'
    uses = 'the map before pooling, both classifiers'
    needs = ('map',)
    published = {'alpha': 0.0, 'beta': 15.0, 'cat_resolution': 2}
    published_imagenet = {'beta': 0.5, 'cat_resolution': 4}
    float32 = True

    @classmethod
    def add_arguments(cls, add):
        add('--cat_resolution', type=number(int, low=1, high=512),
            help='size to which the activation maps are pooled; not given: 2, for ImageNet 4')
        add('--cat_normalize', action='store_true', help='compare the normalised maps')

    def build(self, opt, data, shapes_s, shapes_t):
        self.check_heads(opt, shapes_s, shapes_t)
        self.criterion = CATKDLoss(opt.cat_resolution, opt.cat_normalize)

    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(*(activation_maps(out.map, net.get_classifier())
                                for out, net in ((out_s, self.student), (out_t, self.teacher))))
