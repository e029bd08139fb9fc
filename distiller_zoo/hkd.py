"""HKD: the flow of information through a middle-sized teacher, layer by layer."""
import re
from pathlib import Path

from torch import nn

from helper.cli import number

from .base import Distiller
from .pairwise import cosine_kernel, row_probabilities, squared_distances


def _jeffreys(p, q):
    """Mean over all pairs of the symmetric divergence's terms."""
    return ((p - q) * (p.log() - q.log())).mean()


def _student_t_kernel(x, eps):
    """(N, D) -> (N, N): 1 / (1 + distance)."""
    return 1 / (1 + (squared_distances(x, eps=0.0) + eps).sqrt())


class HKDLoss(nn.Module):
    """Passalis et al., CVPR 2020, Heterogeneous Knowledge Distillation using Information Flow Modeling,
    arXiv:2005.00727.

    Layer i counts init_weight * decay^i.
    """

    eps = 1e-6

    def __init__(self, init_weight: float = 100, decay: float = 0.7):
        super().__init__()
        self.init_weight, self.decay = init_weight, decay

    def forward(self, f_s: list, f_t: list):
        """Lists of features (N, ...), paired in order -> scalar: divergences of a cosine and a Student-t kernel."""
        loss = 0.0
        for i, (s, t) in enumerate(zip(f_s, f_t, strict=False)):
            s, t = s.flatten(1), t.flatten(1)
            for kernel in (cosine_kernel, _student_t_kernel):
                p_s, p_t = (row_probabilities(kernel(x, self.eps)) for x in (s, t))
                loss = loss + self.init_weight * self.decay ** i * _jeffreys(p_t, p_s)
        return loss


class HKDDistiller(Distiller):
    """The second of two passes: --path-t is an auxiliary teacher that was itself distilled, with pkt."""

    title = 'HKD'
    paper = 'Passalis et al., CVPR 2020, arXiv:2005.00727'
    uses = 'stage features, in order'
    needs = ('feats',)
    published = {'beta': 1.0}
    float32 = True
    pairwise = True
    auxiliary_teacher = True

    @classmethod
    def add_arguments(cls, add):
        add('--hkd_initial_weight', type=number(float, low=0), default=100.0, help='weight of the first layer')
        add('--hkd_decay', type=number(float, above=0, high=100), default=0.7, help='from each layer to the next')

    def build(self, opt, data, shapes_s, shapes_t):
        if not re.match('S[:~].+_T[:~]', Path(opt.path_t).resolve().parent.name):
            print(f'--distill hkd: {opt.model_t} was not itself distilled; the published way is an auxiliary teacher, '
                  f'between the teacher and the student in size, that learnt by --distill pkt')
        self.criterion = HKDLoss(opt.hkd_initial_weight, opt.hkd_decay)

    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.feats[1:-1], out_t.feats[1:-1])
