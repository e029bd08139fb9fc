"""DIST: the student's probabilities correlate with the teacher's, within each image and within each class."""
import torch.nn.functional as F
from torch import nn

from helper.cli import number

from .base import Distiller


def _correlation(a, b):
    """Pearson's coefficient of each row: (N, M), (N, M) -> (N,)."""
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)


class DISTLoss(nn.Module):
    """Huang et al., NeurIPS 2022, Knowledge Distillation from A Stronger Teacher, arXiv:2205.10536.

    beta weights the relations within an image, gamma those within a class, tau is the temperature.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0):
        super().__init__()
        self.beta, self.gamma, self.tau = beta, gamma, tau

    def forward(self, logits_s, logits_t):
        """Logits (N, classes) -> scalar."""
        p_s, p_t = (F.softmax(logits / self.tau, dim=1) for logits in (logits_s, logits_t))
        inter = 1 - _correlation(p_s, p_t).mean()
        intra = 1 - _correlation(p_s.t(), p_t.t()).mean()
        return self.tau ** 2 * (self.beta * inter + self.gamma * intra)


class DISTDistiller(Distiller):
    title = 'DIST'
    paper = 'Huang et al., NeurIPS 2022, arXiv:2205.10536'
    uses = 'logits'
    published = {'alpha': 0.0, 'beta': 2.0, 'kd_T': 4.0}
    published_imagenet = {'kd_T': 1.0}
    float32 = True
    pairwise = True

    @classmethod
    def add_arguments(cls, add):
        add('--dist_beta', type=number(float, low=0), default=1.0, help='weight of the relations within an image')
        add('--dist_gamma', type=number(float, low=0), default=1.0, help='weight of the relations within a class')

    def build(self, opt, data, shapes_s, shapes_t):
        self.criterion = DISTLoss(opt.dist_beta, opt.dist_gamma, opt.kd_T)

    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.logits, out_t.logits)
