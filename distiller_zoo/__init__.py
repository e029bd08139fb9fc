"""Every distillation method by its name: distiller_dict[name](student, teacher, opt, data)."""
from helper.errors import UserError, nearest

from .base import Distiller
from .criterion import DistillKL
from .kd import KD
from .semckd import MLPEmbed, SelfA, SemCKD, SemCKDLoss

distiller_dict: dict[str, type[Distiller]] = {'kd': KD, 'semckd': SemCKD}

__all__ = ['DistillKL', 'Distiller', 'KD', 'MLPEmbed', 'SelfA', 'SemCKD', 'SemCKDLoss', 'distiller_dict', 'get_method']


def get_method(name: str) -> type[Distiller]:
    """The Distiller class of a --distill name. Raises UserError for no method."""
    if name not in distiller_dict:
        raise UserError(f'--distill {name}: no such method; {nearest(name, distiller_dict)}')
    return distiller_dict[name]
