"""The method ofa; its loss is in criteria/ofa.py."""
from torch import nn

from helper.cli import number

from .base import Distiller, Spec
from .criteria.ofa import ExitHead, ofa_loss


class OFAKDDistiller(Distiller):
    """Hao et al., NeurIPS 2023, One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
    Distillation, arXiv:2310.19444.

    Only the teacher's logits are compared, so it may be of any architecture. The heads are as wide as the wider
    embedding of the two nets, and are not deployed.
    """

    spec = Spec(
        title='OFA-KD', paper='Hao et al., NeurIPS 2023, arXiv:2310.19444', uses="logits, the student's stages",
        published={'alpha': 0.0, 'beta': 1.0, 'kd_T': 1.0, 'ofa_gamma': 1.0}, published_imagenet={'ofa_gamma': 1.5},
        needs_class=True, reads_kd_T=True, stages_s=True)

    @classmethod
    def add_arguments(cls, add):
        add('--ofa_gamma', type=number(float, above=0, high=10),
            help="exponent of the teacher's probabilities; above 1 it weakens the other classes; not given: 1, for "
                 'ImageNet 1.5')

    def build(self, opt, data, shapes_s, shapes_t):
        maps = shapes_s.feats[1:-1]
        width = max(*shapes_s.embedding, *shapes_t.embedding)
        self.heads = nn.ModuleList(ExitHead(c, size, maps[-1][-1], width, data.num_classes) for c, _, size in maps)
        self.modulation = opt.ofa_gamma

    def method_loss(self, out_s, out_t, target, index):
        branches = [out_s.logits, *(head(f) for head, f in zip(self.heads, out_s.feats[1:-1], strict=True))]
        return sum(ofa_loss(logits, out_t.logits, target, self.modulation, self.temperature) for logits in branches)
