"""The method wkdf; its loss is in criteria/wkdf.py."""
import torch

from helper.cli import MOST_EPOCHS, number
from helper.errors import UserError

from .base import Distiller, PairError, Spec, check_maps, in_float32
from .criteria.hint import ConvReg
from .criteria.wkdf import WKDBottleneck, WKDFeatureLoss
from .criteria.wkdl import weight_factor


class WKDFDistiller(Distiller):
    """A wide ResNet gives its last map before batch norm and ReLU, as published; the projector ends in a ReLU."""

    spec = Spec(
        title='WKD-F', paper='Lv, Yang and Li, NeurIPS 2024, arXiv:2412.08139', uses='feats[-2]',
        published={'alpha': 0.0, 'beta': 0.08, 'wkdf_mean_weight': 4.0, 'wkdf_grid': 1, 'wkdf_decay_from': 150,
                   'wkdf_projector': 'conv'},
        published_imagenet={'beta': 0.02, 'wkdf_mean_weight': 2.0, 'wkdf_grid': 4, 'wkdf_decay_from': 0,
                            'wkdf_projector': 'bottleneck'},
        needs=('feats',), features_only=True, scheduled_over_epochs=True)

    @classmethod
    def add_arguments(cls, add):
        add('--wkdf_mean_weight', type=number(float, low=0),
            help='weight of the means; that of the standard deviations is 1; not given: 4, for ImageNet 2')
        add('--wkdf_grid', type=number(int, low=1, high=512),
            help='cells per side of the map, each with a mean and a deviation; not given: 1, for ImageNet 4')
        add('--wkdf_decay_from', type=number(int, low=0, high=MOST_EPOCHS),
            help='epoch after which the weight of the loss falls to 0 in the last one; not given: 150, for ImageNet 0')
        add('--wkdf_projector', choices=('conv', 'bottleneck'),
            help="the layers on the student's map: one convolution, or three; not given: conv, for ImageNet bottleneck")

    def build(self, opt, data, shapes_s, shapes_t):
        shape_s, shape_t = shapes_s.feats[-2], shapes_t.feats[-2]
        check_maps(opt, [shape_s], [shape_t])
        self.projector = ConvReg((2, *shape_s), (2, *shape_t)) if opt.wkdf_projector == 'conv' else \
            WKDBottleneck(shape_s[0], shape_t[0])
        self.decay_from = opt.wkdf_decay_from
        self.criterion = WKDFeatureLoss(opt.wkdf_mean_weight, grid=opt.wkdf_grid)
        with torch.no_grad():
            size = self.projector.eval()(torch.zeros(1, *shape_s), torch.zeros(1, *shape_t))[0].shape[-1]
        self.projector.train()
        if size < 2:
            raise PairError(f'--distill {opt.distill}: the last stages of {opt.model_s} and {opt.model_t} are compared '
                            f'at one position, which has no deviation')
        if opt.wkdf_grid >= size:
            raise UserError(f'--wkdf_grid {opt.wkdf_grid}: the last stages of {opt.model_s} and {opt.model_t} are '
                            f'compared at {size}x{size} positions, and a cell needs two; give at most {size - 1}')

    def begin_epoch(self, epoch, epochs):
        super().begin_epoch(epoch, epochs)
        self.schedule_factor.mul_(weight_factor(epoch, epochs, self.decay_from))

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(*self.projector(out_s.feats[-2], out_t.feats[-2]))
