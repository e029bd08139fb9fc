"""KD: the student learns the teacher's softened logits."""
from .base import Distiller


class KDDistiller(Distiller):
    """The soft-label loss of the base is the whole method; its weight is alpha, not beta."""

    title = 'KD'
    paper = 'Hinton et al., NIPS workshop 2014, arXiv:1503.02531'
    uses = 'logits'
    published_logit_stand = {'gamma': 0.1, 'alpha': 9.0, 'kd_T': 2.0}
