"""The method crd; its loss is in criteria/crd.py."""
from helper.cli import number
from helper.errors import UserError

from .base import Distiller, Spec, in_float32
from .criteria.crd import ContrastSampler, CRDLoss


class CRDDistiller(Distiller):
    spec = Spec(
        title='CRD', paper='Tian et al., ICLR 2020, arXiv:1910.10699', uses='feats[-1], sample index',
        published={'beta': 0.8}, needs=('embedding',), needs_class=True, features_only=True)

    @classmethod
    def add_arguments(cls, add):
        add('--feat_dim', type=number(int, low=1, high=65536), default=128, help='width of the embeddings')
        add('--mode', choices=('exact', 'relax'), default='exact',
            help='the positive: the image itself, or any of its class')
        add('--nce_k', type=number(int, low=1, high=10**7), default=16384, help='negatives for each image')
        add('--nce_t', type=number(float, above=0), default=0.07, help='temperature')
        add('--nce_m', type=number(float, low=0, high=1), default=0.5, help='momentum of the memories')

    def build(self, opt, data, shapes_s, shapes_t):
        self.sampler = ContrastSampler(data.labels, opt.nce_k, opt.mode == 'relax')
        if not self.sampler.fewest_negatives:
            raise UserError('--distill crd: contrasts images of different classes, but the data has one class')
        if self.sampler.repeats:
            print(f'--nce_k {opt.nce_k}: the other classes have {self.sampler.fewest_negatives} samples; '
                  f'negatives are drawn with repetition')
        self.criterion = CRDLoss(s_dim=shapes_s.embedding[0], t_dim=shapes_t.embedding[0], n_data=data.n_train,
                                 feat_dim=opt.feat_dim, nce_t=opt.nce_t, nce_m=opt.nce_m)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.embedding, out_t.embedding, index, self.sampler(index, target))
