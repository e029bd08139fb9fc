"""The criteria of distillation, which need only torch; and every method by its name, distiller_dict[name].

The methods need the rest of the repository, so registry.py, which has them, is imported when one of them is first used.
"""
from .criteria.abkd import ABDKDLoss, ABKDLoss
from .criteria.abound import ABLoss, Connector
from .criteria.attention import Attention
from .criteria.catkd import CATKDLoss, activation_maps
from .criteria.common import ConvBN, standardize_logits
from .criteria.correlation import Correlation, LinearEmbed
from .criteria.crd import ContrastSampler, CRDLoss, Embed
from .criteria.ctkd import GlobalTemperature, reversal_strength
from .criteria.dist import DISTLoss
from .criteria.dkd import dkd_loss
from .criteria.eakd import entropy_weights
from .criteria.factor import FactorTransfer, Paraphraser, Translator
from .criteria.fsp import FSP
from .criteria.hint import ConvReg, HintLoss
from .criteria.hkd import HKDLoss
from .criteria.ickd import ICKDLoss
from .criteria.ikl import ClassMeans, GKLLoss, IKLLoss
from .criteria.irg import IRGLoss
from .criteria.kd import DistillKL, distill_kl
from .criteria.kdsvd import KDSVD
from .criteria.ldrld import LDRLDLoss
from .criteria.luminet import LumiNetLoss
from .criteria.mlld import MLLDLoss
from .criteria.multi_teacher import CAMKDFeatureLoss, MultiTeacherKL
from .criteria.nd import NDConnector, NDLoss
from .criteria.nkd import NKDLoss
from .criteria.nst import NSTLoss
from .criteria.ofa import ExitHead, ofa_loss
from .criteria.ofd import OFDLoss, ofd_margin
from .criteria.pkt import PKT
from .criteria.reviewkd import ABF, HCLLoss, ReviewStack
from .criteria.rkd import RKDLoss
from .criteria.rld import RLDLoss
from .criteria.sdd import SDDLoss, regional_logits
from .criteria.semckd import MLPEmbed, SelfA, SemCKDLoss
from .criteria.similarity import Similarity
from .criteria.simkd import SimKDProjector
from .criteria.skd import SKDLoss, gram_mahalanobis
from .criteria.srd import SRDLoss
from .criteria.srrl import SRRLLoss, SRRLTransfer
from .criteria.tekap import TeKAPLoss
from .criteria.ttm import TTMLoss, WTTMLoss
from .criteria.vid import VIDLoss
from .criteria.vkd import OrthogonalProjector, VkDLoss
from .criteria.wkdf import WKDBottleneck, WKDFeatureLoss
from .criteria.wkdl import WKDLogitLoss, cka_cost, transport_cost, weight_factor

__all__ = [
    'ABDKDLoss', 'ABF', 'ABKDLoss', 'ABLoss', 'Attention', 'CAMKDFeatureLoss', 'CATKDLoss', 'CRDLoss', 'ClassMeans',
    'Connector', 'ContrastSampler', 'ConvBN', 'ConvReg', 'Correlation', 'DISTLoss', 'DistillKL', 'Embed',
    'ExitHead', 'FSP', 'FactorTransfer', 'GKLLoss', 'GlobalTemperature', 'HCLLoss', 'HKDLoss', 'HintLoss',
    'ICKDLoss', 'IKLLoss', 'IRGLoss', 'KDSVD', 'LDRLDLoss', 'LinearEmbed', 'LumiNetLoss', 'MLLDLoss', 'MLPEmbed',
    'MultiTeacherKL', 'NDConnector', 'NDLoss', 'NKDLoss', 'NSTLoss', 'OFDLoss', 'OrthogonalProjector', 'PKT',
    'Paraphraser', 'RKDLoss', 'RLDLoss', 'ReviewStack', 'SDDLoss', 'SKDLoss', 'SRDLoss', 'SRRLLoss', 'SRRLTransfer',
    'SelfA', 'SemCKDLoss', 'SimKDProjector', 'Similarity', 'TTMLoss', 'TeKAPLoss', 'Translator', 'VIDLoss',
    'VkDLoss', 'WKDBottleneck', 'WKDFeatureLoss', 'WKDLogitLoss', 'WTTMLoss', 'activation_maps', 'cka_cost',
    'distill_kl', 'dkd_loss', 'entropy_weights', 'gram_mahalanobis', 'ofa_loss', 'ofd_margin', 'regional_logits',
    'reversal_strength', 'standardize_logits', 'transport_cost', 'weight_factor',
]

IN_REPOSITORY = ('SOFT_LABELS', 'Spec', 'TrainingTask', 'Vanilla', 'distiller_dict', 'get_method', 'load_inference_net',
                 'make_distiller')


def __getattr__(name: str):
    if name not in IN_REPOSITORY and not name.endswith('Distiller'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        from . import registry
    except ImportError as error:
        raise ImportError(f'distiller_zoo.{name} needs the whole repository: clone it and start Python in its folder; '
                          f'elsewhere the package only has the criteria ({error})') from error
    return getattr(registry, name)
