"""The method hint; its loss is in criteria/hint.py."""
from helper.cli import number
from helper.errors import UserError

from .base import Distiller, Spec, check_maps
from .criteria.hint import ConvReg, HintLoss


class FitNetDistiller(Distiller):
    spec = Spec(
        title='FitNet', paper='Romero et al., ICLR 2015, arXiv:1412.6550', uses='feats[--hint_layer]',
        published={'beta': 100.0}, needs=('feats',), features_only=True)

    @classmethod
    def add_arguments(cls, add):
        add('--hint_layer', type=number(int, low=0, high=4), default=1,
            help='the compared entry of feats; 0: the stem, 1: the first stage')

    def build(self, opt, data, shapes_s, shapes_t):
        self.layer = opt.hint_layer
        for name, shapes in ((opt.model_s, shapes_s.feats), (opt.model_t, shapes_t.feats)):
            if self.layer > len(shapes) - 2:
                raise UserError(f'--hint_layer {self.layer}: {name} has feature layers 0..{len(shapes) - 2}')
        s_shape, t_shape = shapes_s.feats[self.layer], shapes_t.feats[self.layer]
        check_maps(opt, [s_shape], [t_shape])
        self.regressor = ConvReg((2, *s_shape), (2, *t_shape))
        self.criterion = HintLoss()

    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(*self.regressor(out_s.feats[self.layer], out_t.feats[self.layer]))
