"""Every distillation method by its name: distiller_dict[name](student, teacher, opt, data)."""
from helper.errors import UserError, nearest

from .abound import AB, ABLoss, Connector
from .attention import AT, Attention
from .base import Distiller
from .correlation import CC, Correlation, LinearEmbed
from .crd import CRD, ContrastSampler, CRDLoss, Embed
from .criterion import DistillKL
from .dkd import DKD, dkd_loss
from .factor import FT, FactorTransfer, Paraphraser, Translator
from .fsp import FSP, FSPDistiller
from .hint import ConvReg, Hint, HintLoss
from .hkd import HKD, HKDLoss
from .irg import IRG, IRGLoss
from .kd import KD
from .kdsvd import KDSVD, KDSVDDistiller
from .nst import NST, NSTLoss
from .pkt import PKT, PKTDistiller
from .rkd import RKD, RKDLoss
from .semckd import MLPEmbed, SelfA, SemCKD, SemCKDLoss
from .similarity import SP, Similarity
from .vid import VID, VIDLoss

distiller_dict: dict[str, type[Distiller]] = {
    'kd': KD, 'hint': Hint, 'attention': AT, 'similarity': SP, 'correlation': CC, 'vid': VID, 'rkd': RKD,
    'pkt': PKTDistiller, 'irg': IRG, 'hkd': HKD, 'crd': CRD, 'semckd': SemCKD, 'nst': NST, 'fsp': FSPDistiller,
    'abound': AB, 'factor': FT, 'kdsvd': KDSVDDistiller, 'dkd': DKD,
}

__all__ = [
    'ABLoss', 'Attention', 'CRDLoss', 'Connector', 'ContrastSampler', 'ConvReg', 'Correlation', 'DistillKL',
    'Distiller', 'Embed', 'FSP', 'FactorTransfer', 'HKDLoss', 'HintLoss', 'IRGLoss', 'KDSVD', 'LinearEmbed', 'MLPEmbed',
    'NSTLoss', 'PKT', 'Paraphraser', 'RKDLoss', 'SelfA', 'SemCKDLoss', 'Similarity', 'Translator', 'VIDLoss',
    'distiller_dict', 'dkd_loss', 'get_method',
]


def get_method(name: str) -> type[Distiller]:
    """The Distiller class of a --distill name. Raises UserError for no method."""
    if name not in distiller_dict:
        raise UserError(f'--distill {name}: no such method; {nearest(name, distiller_dict)}')
    return distiller_dict[name]
