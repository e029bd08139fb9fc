"""The method kdsvd; its loss is in criteria/kdsvd.py."""
from .base import Distiller, PairError, Spec, check_maps, in_float32
from .criteria.kdsvd import KDSVD


class KDSVDDistiller(Distiller):
    spec = Spec(
        title='KDSVD', paper='Lee et al., ECCV 2018, arXiv:1807.06819', uses='stage features, in order',
        published={'beta': 1.0}, needs=('feats',), features_only=True)

    def build(self, opt, data, shapes_s, shapes_t):
        check_maps(opt, shapes_s.feats[1:-1], shapes_t.feats[1:-1])
        pairs = list(zip(shapes_s.feats[1:-1], shapes_t.feats[1:-1], strict=False))
        if any(s[0] != t[0] for s, t in pairs):
            raise PairError(f'--distill kdsvd: needs stages of equal channels; {opt.model_s} has '
                            f'{[s[0] for s, _ in pairs]}, {opt.model_t} {[t[0] for _, t in pairs]}')
        self.criterion = KDSVD()

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return sum(self.criterion(out_s.feats[1:-1], out_t.feats[1:-1]))
