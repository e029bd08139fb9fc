"""Every distillation method by its name: distiller_dict[name](student, teacher, opt, data)."""
import torch
from torch import nn

from helper.checkpoint import load_checkpoint, load_weights, weights_of
from helper.errors import UserError, nearest, reason
from models.load import load_net, new_net, teacher_name

from .abound import ABDistiller, ABLoss, Connector
from .attention import ATDistiller, Attention
from .base import Distiller
from .correlation import CCDistiller, Correlation, LinearEmbed
from .crd import ContrastSampler, CRDDistiller, CRDLoss, Embed
from .criterion import DistillKL, distill_kl
from .dkd import DKDDistiller, dkd_loss
from .factor import FactorTransfer, FTDistiller, Paraphraser, Translator
from .fsp import FSP, FSPDistiller
from .hint import ConvReg, FitNetDistiller, HintLoss
from .hkd import HKDDistiller, HKDLoss
from .irg import IRGDistiller, IRGLoss
from .kd import KDDistiller
from .kdsvd import KDSVD, KDSVDDistiller
from .nst import NSTDistiller, NSTLoss
from .pkt import PKT, PKTDistiller
from .rkd import RKDDistiller, RKDLoss
from .semckd import MLPEmbed, SelfA, SemCKDDistiller, SemCKDLoss
from .similarity import Similarity, SPDistiller
from .vanilla import Vanilla
from .vid import VIDDistiller, VIDLoss

distiller_dict: dict[str, type[Distiller]] = {
    'kd': KDDistiller, 'hint': FitNetDistiller, 'attention': ATDistiller, 'similarity': SPDistiller,
    'correlation': CCDistiller, 'vid': VIDDistiller, 'rkd': RKDDistiller, 'pkt': PKTDistiller, 'irg': IRGDistiller,
    'hkd': HKDDistiller, 'crd': CRDDistiller, 'semckd': SemCKDDistiller, 'nst': NSTDistiller, 'fsp': FSPDistiller,
    'abound': ABDistiller, 'factor': FTDistiller, 'kdsvd': KDSVDDistiller, 'dkd': DKDDistiller,
}

SOFT_LABELS = 'kd'      # soft labels alone: the default, and what other methods are measured against

__all__ = [
    'SOFT_LABELS',
    'ABLoss', 'Attention', 'CRDLoss', 'Connector', 'ContrastSampler', 'ConvReg', 'Correlation', 'DistillKL',
    'Distiller', 'Embed', 'FSP', 'FactorTransfer', 'HKDLoss', 'HintLoss', 'IRGLoss', 'KDSVD', 'LinearEmbed', 'MLPEmbed',
    'NSTLoss', 'PKT', 'Paraphraser', 'RKDLoss', 'SelfA', 'SemCKDLoss', 'Similarity', 'Translator', 'VIDLoss',
    'Vanilla', 'distill_kl', 'distiller_dict', 'dkd_loss', 'get_method', 'load_inference_net',
]


def get_method(name: str, flag: str = '--distill') -> type[Distiller]:
    """The Distiller class of a method's name. Raises UserError that names `flag` for no method."""
    if name not in distiller_dict:
        raise UserError(f'{flag} {name}: no such method; {nearest(name, distiller_dict)}')
    return distiller_dict[name]


def load_inference_net(path: str, data, flag: str) -> tuple[str, nn.Module]:
    """(name, the network that the checkpoint at `path` deploys) for data.num_classes classes of data.image_size pixels.

    Raises UserError that names `flag`.
    """
    checkpoint = load_checkpoint(path, flag)
    name = teacher_name(path, checkpoint, flag)
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
