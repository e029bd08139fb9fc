"""Several teachers of one student: their ensemble, and the options of each."""
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from helper.cli import colours, number, one_of, stage_list, word_list

from .inputs import INTERPOLATIONS

NOT_GIVEN = '-'         # on the command line: take the value from the checkpoint of this teacher
TEACHER_OPTIONS = {     # option with a value for each teacher -> type of the value
    'model_t': str, 'mean_t': colours(low=0), 'std_t': colours(above=0), 'size_t': number(int, low=8, high=4096),
    'interpolation_t': one_of(INTERPOLATIONS), 'stages_t': stage_list, 'teacher_head': one_of(('linear',))}


class Ensemble(nn.ModuleList):
    """Nets (models.base.Net) of the same classes; their prediction is the weighted mean of their probabilities."""

    def __init__(self, nets: list[nn.Module], weights: list[float] | None = None):
        """weights: one for each net; None: equal."""
        super().__init__(nets)
        weights = weights or [1.0] * len(nets)
        normalised = torch.tensor([weight / sum(weights) for weight in weights])
        self.register_buffer('log_weights', normalised.log(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) -> the logarithm of the mean probabilities, float32 (N, classes)."""
        log_p = torch.stack([net(images).float().log_softmax(1) for net in self])
        return (log_p + self.log_weights[:, None, None]).logsumexp(0)

    @property
    def checksum(self) -> list[int]:
        """The checksum of each net's weights; see models.load.load_net."""
        return [net.checksum for net in self]

    @property
    def has_classifier(self) -> bool:
        """Whether all nets have a classifier of the data's classes."""
        return all(net.has_classifier for net in self)

    @property
    def head_checksum(self) -> list[int | None] | None:
        """The checksum of each net's head of --teacher_head; None if no net has one."""
        checksums = [net.head_checksum for net in self]
        return checksums if any(checksums) else None

    @property
    def code_checksum(self) -> list[int | None] | None:
        """The checksum of each net's code; None if no net is from a user's file."""
        checksums = [getattr(net, 'code_checksum', None) for net in self]
        return checksums if any(checksums) else None


def as_teacher(opt, nets: list[nn.Module]) -> nn.Module:
    """Return an Ensemble of several nets, weighted by the numbers of --teacher_weights; a single net unchanged."""
    weights = opt.teacher_weights if isinstance(opt.teacher_weights, list) else None
    return Ensemble(nets, weights) if isinstance(opt.path_t, list) else nets[0]


def nets_of(teacher: nn.Module) -> list[nn.Module]:
    """The nets of an Ensemble, or a single net as a list."""
    return [*teacher] if isinstance(teacher, Ensemble) else [teacher]


def measured_nets(opt, teacher: nn.Module) -> list[tuple[str, str, nn.Module]]:
    """(name, flag and file, net) of each net whose accuracy is measured: every teacher, and the Ensemble if several."""
    rows = [(teacher_opt.model_t, f'--path-t {teacher_opt.path_t}', net)
            for teacher_opt, net in zip(options_of_teachers(opt), nets_of(teacher), strict=True)]
    return rows if len(rows) == 1 else [*rows, ('ensemble', f'--path-t {word_list(opt.path_t)}', teacher)]


def options_of_teachers(opt) -> list:
    """Return for each teacher of opt.path_t the options of a run with it alone; for a single teacher [opt]."""
    if not isinstance(opt.path_t, list):
        return [opt]
    return [SimpleNamespace(**{**vars(opt), 'path_t': path,
                               **{name: _value(name, getattr(opt, name), i) for name in TEACHER_OPTIONS}})
            for i, path in enumerate(opt.path_t)]


def _value(name, values, i):
    return None if values is None or values[i] == NOT_GIVEN else TEACHER_OPTIONS[name](values[i])
