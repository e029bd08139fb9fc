"""The method sdd; its loss is in criteria/sdd.py."""
from .base import Distiller, Spec, check_heads, in_float32
from .criteria.sdd import SDDLoss, regional_logits
from .dkd import OPTIONS, DKDDistiller


class SDDDistiller(Distiller):
    spec = Spec(
        title='SDD', paper='Wei et al., CVPR 2024, arXiv:2403.13512', uses='the map before pooling, both classifiers',
        published={'gamma': 0.1, 'alpha': 0.0, 'beta': 0.9}, published_imagenet={'sdd_scales': '1,2,4'},
        needs=('map',), needs_class=True, reads_kd_T=True)

    @classmethod
    def add_arguments(cls, add):
        DKDDistiller.add_arguments(add)
        add('--sdd_base', choices=('kd', 'dkd'), default='kd', help='the loss of each region')
        add('--sdd_scales', choices=('1', '1,2', '1,2,4'),
            help='regions per side of the map; not given: 1,2 for two nets of one family, else, and for ImageNet, '
                 '1,2,4')

    @classmethod
    def options_without_effect(cls, opt):
        return {} if opt.sdd_base == 'dkd' else dict.fromkeys(OPTIONS, '--sdd_base dkd')

    @classmethod
    def published_options(cls, opt):
        usual = super().published_options(opt)
        if opt.sdd_base == 'dkd':
            return {**usual, **DKDDistiller.published_options(opt)}
        return usual

    def build(self, opt, data, shapes_s, shapes_t):
        check_heads(opt, [('--model_s', opt.model_s, self.student, shapes_s),
                          ('--path-t', opt.model_t, self.teacher, shapes_t)])
        scales = opt.sdd_scales or ('1,2' if type(self.student) is type(self.teacher) else '1,2,4')
        self.scales = [int(scale) for scale in scales.split(',')]
        self.criterion = SDDLoss(opt.sdd_base, opt.kd_T, opt.dkd_alpha, opt.dkd_beta)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(*(regional_logits(out.map, net.get_classifier(), self.scales)
                                for out, net in ((out_s, self.student), (out_t, self.teacher))), target)
