"""The method irg; its loss is in criteria/irg.py."""
from helper.cli import number
from helper.errors import UserError

from .base import Distiller, Spec, in_float32
from .criteria.irg import IRGLoss


class IRGDistiller(Distiller):
    spec = Spec(
        title='IRG', paper='Liu et al., CVPR 2019', uses='feats[-1], feats[--transform_layer_s/_t]',
        published={'beta': 0.005}, needs=('embedding', 'feats'), pairwise=True, features_only=True)

    @classmethod
    def add_arguments(cls, add):
        layers = {'type': number(int, low=0), 'nargs': '+', 'default': [], 'metavar': 'LAYER'}
        add('--transform_layer_t', **layers,
            help="the teacher's feature layers whose transformations are compared, in pairs")
        add('--transform_layer_s', **layers, help="the student's, in the same order")
        add('--no_edge_transform', action='store_true', help='leave edges out of these transformations')

    @classmethod
    def options_without_effect(cls, opt):
        return {} if opt.transform_layer_t else {'no_edge_transform': '--transform_layer_t'}

    def build(self, opt, data, shapes_s, shapes_t):
        self.layers_s, self.layers_t = opt.transform_layer_s, opt.transform_layer_t
        self.no_edge_transform = opt.no_edge_transform
        for flag, name, layers, shapes in (('--transform_layer_s', opt.model_s, self.layers_s, shapes_s.feats),
                                           ('--transform_layer_t', opt.model_t, self.layers_t, shapes_t.feats)):
            for layer in layers:
                if not 0 <= layer < len(shapes):
                    raise UserError(f'{flag} {layer}: {name} has feature layers 0..{len(shapes) - 1}')
        if len(self.layers_s) != len(self.layers_t) or len(self.layers_s) % 2:
            raise UserError(f'--transform_layer_s and --transform_layer_t: {len(self.layers_s)} and '
                            f'{len(self.layers_t)} layers; give both the same even number, two to a transformation')
        self.criterion = IRGLoss()

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.embedding, out_t.embedding, [out_s.feats[i] for i in self.layers_s],
                              [out_t.feats[i] for i in self.layers_t], self.no_edge_transform)
