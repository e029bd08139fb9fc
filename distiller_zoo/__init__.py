"""Every distillation method by its name: distiller_dict[name](student, teacher, opt, data)."""
import torch
from torch import nn

from helper.checkpoint import load_checkpoint, load_weights, weights_of
from helper.cli import comma_list
from helper.errors import UserError, nearest, reason
from models.load import load_net, new_net, teacher_name

from .abound import ABDistiller, ABLoss, Connector
from .attention import ATDistiller, Attention
from .base import Distiller, PairError
from .catkd import CATKDDistiller, CATKDLoss, activation_maps
from .combined import combine
from .correlation import CCDistiller, Correlation, LinearEmbed
from .crd import ContrastSampler, CRDDistiller, CRDLoss, Embed
from .criterion import DistillKL, distill_kl
from .ctkd import CTKDDistiller, GlobalTemperature, reversal_strength
from .deit import DeiTDistiller
from .dist import DISTDistiller, DISTLoss
from .dkd import DKDDistiller, dkd_loss
from .factor import FactorTransfer, FTDistiller, Paraphraser, Translator
from .fsp import FSP, FSPDistiller
from .hint import ConvReg, FitNetDistiller, HintLoss
from .hkd import HKDDistiller, HKDLoss
from .ickd import ICKDDistiller, ICKDLoss
from .irg import IRGDistiller, IRGLoss
from .kd import KDDistiller
from .kdsvd import KDSVD, KDSVDDistiller
from .logits import standardize_logits
from .mlld import MLLDDistiller, MLLDLoss
from .nkd import NKDDistiller, NKDLoss
from .nst import NSTDistiller, NSTLoss
from .ofa import ExitHead, OFAKDDistiller, ofa_loss
from .ofd import OFDDistiller, OFDLoss, ofd_margin
from .pkt import PKT, PKTDistiller
from .reviewkd import ABF, HCLLoss, ReviewKDDistiller, ReviewStack
from .rkd import RKDDistiller, RKDLoss
from .rld import RLDDistiller, RLDLoss
from .sdd import SDDDistiller, SDDLoss, regional_logits
from .semckd import MLPEmbed, SelfA, SemCKDDistiller, SemCKDLoss
from .similarity import Similarity, SPDistiller
from .simkd import SimKDDistiller, SimKDProjector
from .skd import SKDDistiller, SKDLoss, gram_mahalanobis
from .srrl import SRRLDistiller, SRRLLoss, SRRLTransfer
from .ttm import TTMDistiller, TTMLoss, WTTMDistiller, WTTMLoss
from .vanilla import Vanilla
from .vid import VIDDistiller, VIDLoss
from .wkdl import WKDLDistiller, WKDLogitLoss, cka_cost

distiller_dict: dict[str, type[Distiller]] = {
    'kd': KDDistiller, 'hint': FitNetDistiller, 'attention': ATDistiller, 'similarity': SPDistiller,
    'correlation': CCDistiller, 'vid': VIDDistiller, 'rkd': RKDDistiller, 'pkt': PKTDistiller, 'irg': IRGDistiller,
    'hkd': HKDDistiller, 'crd': CRDDistiller, 'semckd': SemCKDDistiller, 'nst': NSTDistiller, 'fsp': FSPDistiller,
    'abound': ABDistiller, 'factor': FTDistiller, 'kdsvd': KDSVDDistiller, 'dkd': DKDDistiller,
    'ofd': OFDDistiller, 'srrl': SRRLDistiller, 'reviewkd': ReviewKDDistiller, 'ickd': ICKDDistiller,
    'simkd': SimKDDistiller, 'dist': DISTDistiller, 'nkd': NKDDistiller, 'catkd': CATKDDistiller,
    'mlld': MLLDDistiller, 'ctkd': CTKDDistiller, 'sdd': SDDDistiller, 'ttm': TTMDistiller, 'wttm': WTTMDistiller,
    'wkdl': WKDLDistiller, 'rld': RLDDistiller, 'skd': SKDDistiller, 'ofa': OFAKDDistiller, 'deit': DeiTDistiller,
}

SOFT_LABELS = 'kd'      # soft labels alone: the default, and what other methods are measured against

__all__ = [
    'SOFT_LABELS',
    'ABF', 'ABLoss', 'Attention', 'CATKDLoss', 'CRDLoss', 'Connector', 'ContrastSampler', 'ConvReg', 'Correlation',
    'DISTLoss', 'DistillKL', 'Distiller', 'Embed', 'ExitHead', 'FSP', 'FactorTransfer', 'GlobalTemperature', 'HCLLoss',
    'HKDLoss', 'HintLoss', 'ICKDLoss', 'IRGLoss', 'KDSVD', 'LinearEmbed', 'MLLDLoss', 'MLPEmbed', 'NKDLoss', 'NSTLoss',
    'OFDLoss', 'PKT', 'Paraphraser', 'RKDLoss', 'RLDLoss', 'ReviewStack', 'SDDLoss', 'SKDLoss', 'SRRLLoss',
    'SRRLTransfer', 'SelfA', 'SemCKDLoss', 'SimKDProjector', 'Similarity', 'TTMLoss', 'Translator', 'VIDLoss',
    'Vanilla', 'WKDLogitLoss', 'WTTMLoss', 'activation_maps', 'cka_cost', 'distill_kl', 'distiller_dict', 'dkd_loss',
    'get_method', 'gram_mahalanobis', 'load_inference_net', 'make_distiller', 'ofa_loss', 'ofd_margin',
    'regional_logits', 'reversal_strength', 'standardize_logits',
]


def get_method(name: str, flag: str = '--distill') -> type[Distiller]:
    """The Distiller class of a method's name, or of several names with '+' between them.

    Raises UserError that names `flag` for no method, and for methods that cannot be added.
    """
    names = name.split('+')
    for part in names:
        if part not in distiller_dict:
            what = f', {part}' if part and len(names) > 1 else ''
            raise UserError(f'{flag} {name}: no such method{what}; {nearest(part or name, distiller_dict)}')
    if len(names) == 1:
        return distiller_dict[name]
    if len({*names}) < len(names):
        raise UserError(f'{flag} {name}: names a method twice; give each once')
    return combine({part: distiller_dict[part] for part in names}, flag)


def make_distiller(student: nn.Module, teacher: nn.Module, opt, data) -> Distiller:
    """The method opt.distill for these nets, of which it sees the stages of --stages and --stages_t.

    Raises UserError that names other methods where it cannot serve them.
    """
    for net, stages, flag in ((student, opt.stages, '--stages'), (teacher, opt.stages_t, '--stages_t')):
        if stages is not None:
            net.choose(stages, data.image_size, f'{flag} {comma_list(stages)}')
    try:
        return get_method(opt.distill)(student, teacher, opt, data)
    except PairError as error:
        names = [name for name, method in distiller_dict.items()
                 if method.accepts_answers(('embedding',)) and not method.reads_teacher]
        raise UserError(f'{error}. For any two nets: {", ".join(names)}') from error


def load_inference_net(path: str, data, flag: str, arch: str | None = None) -> tuple[str, nn.Module]:
    """(name, the network that the checkpoint at `path` deploys) for data.num_classes classes of data.image_size pixels.

    arch: its net, where the user says it. Raises UserError that names `flag`.
    """
    checkpoint = load_checkpoint(path, flag)
    name = arch or teacher_name(path, checkpoint, flag)
    method = checkpoint.pop('inference_net', None)
    if method is None:
        return name, load_net(path, checkpoint, name, data, flag)
    weights, what = weights_of(checkpoint), f'{flag} {path}: not the weights of {name} as --distill {method} deploys it'
    rebuild = get_method(str(method), f'{flag} {path}: inference_net').rebuild_inference_net
    student = new_net(path, checkpoint, name, data, flag)
    try:
        net = rebuild(student, weights)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:      # of an untrusted file
        raise UserError(f'{what} ({reason(error)})') from error
    load_weights(net, weights, what)
    width = net.eval()(torch.zeros(1, 3, data.image_size, data.image_size)).shape[-1]
    if width != data.num_classes:
        raise UserError(f'{what} (it tells {width} classes apart, the data has {data.num_classes})')
    return f'{name} by {method}', net
