"""Every distillation method by its name: distiller_dict[name](student, teacher, opt, data)."""
import torch
from torch import nn

from helper.cli import comma_list
from helper.errors import UserError, nearest, reason
from models.classes import match_classes
from models.ensemble import Ensemble, nets_of, options_of_teachers
from models.load import fill, load_net, new_net, open_checkpoint, refuse_other_classes
from models.recognise import find_architecture

from .abkd import ABKDDistiller
from .abound import ABDistiller
from .attention import ATDistiller
from .base import Distiller
from .catkd import CATKDDistiller
from .checks import PairError
from .combined import combine
from .correlation import CCDistiller
from .crd import CRDDistiller
from .ctkd import CTKDDistiller
from .deit import DeiTDistiller
from .dist import DISTDistiller
from .dkd import DKDDistiller
from .embed import EmbedDistiller
from .factor import FTDistiller
from .fsp import FSPDistiller
from .hint import FitNetDistiller
from .hkd import HKDDistiller
from .ickd import ICKDDistiller
from .ikl import GKLDistiller, IKLDistiller
from .irg import IRGDistiller
from .kd import KDDistiller
from .kdsvd import KDSVDDistiller
from .ldrld import LDRLDDistiller
from .luminet import LumiNetDistiller
from .mlld import MLLDDistiller
from .multi_teacher import with_teachers
from .nd import NDDistiller
from .nkd import NKDDistiller
from .nst import NSTDistiller
from .ofa import OFAKDDistiller
from .ofd import OFDDistiller
from .pkt import PKTDistiller
from .reviewkd import ReviewKDDistiller
from .rkd import RKDDistiller
from .rld import RLDDistiller
from .sdd import SDDDistiller
from .semckd import SemCKDDistiller
from .similarity import SPDistiller
from .simkd import SimKDDistiller
from .skd import SKDDistiller
from .spec import Spec  # noqa: F401, exported by the package
from .srd import SRDDistiller
from .srrl import SRRLDistiller
from .task import TrainingTask  # noqa: F401
from .tekap import TeKAPDistiller
from .ttm import TTMDistiller, WTTMDistiller
from .vanilla import Vanilla  # noqa: F401, exported by the package
from .vid import VIDDistiller
from .vkd import VkDDistiller
from .wkdf import WKDFDistiller
from .wkdl import WKDLDistiller

distiller_dict: dict[str, type[Distiller]] = {
    'kd': KDDistiller, 'hint': FitNetDistiller, 'attention': ATDistiller, 'similarity': SPDistiller,
    'correlation': CCDistiller, 'vid': VIDDistiller, 'rkd': RKDDistiller, 'pkt': PKTDistiller, 'irg': IRGDistiller,
    'hkd': HKDDistiller, 'crd': CRDDistiller, 'semckd': SemCKDDistiller, 'nst': NSTDistiller, 'fsp': FSPDistiller,
    'abound': ABDistiller, 'factor': FTDistiller, 'kdsvd': KDSVDDistiller, 'dkd': DKDDistiller,
    'ofd': OFDDistiller, 'srrl': SRRLDistiller, 'reviewkd': ReviewKDDistiller, 'ickd': ICKDDistiller,
    'simkd': SimKDDistiller, 'dist': DISTDistiller, 'nkd': NKDDistiller, 'catkd': CATKDDistiller,
    'mlld': MLLDDistiller, 'ctkd': CTKDDistiller, 'sdd': SDDDistiller, 'ttm': TTMDistiller, 'wttm': WTTMDistiller,
    'wkdl': WKDLDistiller, 'wkdf': WKDFDistiller, 'ikl': IKLDistiller, 'gkl': GKLDistiller, 'rld': RLDDistiller,
    'skd': SKDDistiller, 'ofa': OFAKDDistiller, 'deit': DeiTDistiller,
    'abkd': ABKDDistiller, 'srd': SRDDistiller, 'vkd': VkDDistiller, 'ldrld': LDRLDDistiller,
    'luminet': LumiNetDistiller, 'tekap': TeKAPDistiller, 'nd': NDDistiller, 'embed': EmbedDistiller,
}

SOFT_LABELS = 'kd'      # soft labels alone: the default, and what other methods are measured against


def get_method(name: str, flag: str = '--distill') -> type[Distiller]:
    """Return the Distiller class of a method, or of a sum of methods such as 'rkd+crd'.

    Raises UserError that names `flag` for an unknown method, and for methods that cannot be added.
    """
    names = name.split('+')
    for part in names:
        if part not in distiller_dict:
            unknown = f', {part}' if part and len(names) > 1 else ''
            raise UserError(f'{flag} {name}: no such method{unknown}; {nearest(part or name, distiller_dict)}')
    if len(names) == 1:
        return distiller_dict[name]
    if len({*names}) < len(names):
        raise UserError(f'{flag} {name}: names a method twice; give each once')
    return combine({part: distiller_dict[part] for part in names}, flag)


def make_distiller(student: nn.Module, teacher: nn.Module, opt, data) -> Distiller:
    """Build the method opt.distill for these nets, with the stages of --stages and --stages_t.

    teacher: a Net, or an Ensemble of several teachers.

    Raises UserError that suggests other methods if it cannot distil between these nets.
    """
    teachers = zip(nets_of(teacher), options_of_teachers(opt), strict=True)
    for net, stages, flag in ((student, opt.stages, '--stages'),
                              *((net, teacher_opt.stages_t, '--stages_t') for net, teacher_opt in teachers)):
        if stages is not None:
            net.select_stages(stages, data.image_size, f'{flag} {comma_list(stages)}')
    method = get_method(opt.distill)
    if isinstance(teacher, Ensemble):
        method = with_teachers(method, len(teacher))
    try:
        return method(student, teacher, opt, data)
    except PairError as error:
        names = [name for name, method in distiller_dict.items()
                 if method.spec.is_cacheable(('embedding',)) and not method.spec.reads_teacher]
        raise UserError(f'{error}. For any two nets: {", ".join(names)}') from error


def load_inference_net(path: str, data, flag: str, arch: str | None = None,
                       checkpoint: dict | None = None) -> tuple[str, nn.Module]:
    """Return (name, network) that the checkpoint at `path` deploys, with the classes in the order of the data.

    arch: the name of its net, if the user gives one. checkpoint: the result of models.load.open_checkpoint, if it is
    open already. Raises UserError that names `flag`.
    """
    checkpoint = {**(checkpoint or open_checkpoint(path, flag))}
    name = arch or find_architecture(path, checkpoint, flag)
    method = checkpoint.pop('inference_net', None)
    if method is None:
        return name, load_net(path, checkpoint, name, data, flag)
    fault = f'not the weights of {name} as --distill {method} deploys it'
    rebuild = get_method(str(method), f'{flag} {path}: inference_net').rebuild_inference_net
    refuse_other_classes(checkpoint.get('num_classes'), path, name, data, flag)
    student = new_net(path, checkpoint, name, data, flag)
    try:
        net = rebuild(student, checkpoint['model'])
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:      # an untrusted file
        raise UserError(f'{flag} {path}: {fault} ({reason(error)})') from error
    fill(net, checkpoint, f'{flag} {path}', fault)
    width = net.eval()(torch.zeros(1, 3, data.image_size, data.image_size)).shape[-1]
    if width != data.num_classes:
        raise UserError(f'{flag} {path}: {fault} (it has {width} classes, the data has {data.num_classes})')
    match_classes(net, checkpoint.get('classes'), data, f'{flag} {path}')
    return f'{name} by {method}', net
