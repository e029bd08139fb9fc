"""FSP: the student learns the flow between the teacher's layers, then the task."""
import torch
from torch import nn

from .base import Distiller, PairError
from .pool import match_size


class FSP(nn.Module):
    """Yim et al., CVPR 2017, A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning.

    s_shapes, t_shapes: the shapes (N, C, H, W) of the layers; the channels must agree, or UserError.
    """

    def __init__(self, s_shapes: list, t_shapes: list):
        super().__init__()
        channels_s, channels_t = ([shape[1] for shape in shapes] for shapes in (s_shapes, t_shapes))
        if channels_s != channels_t:
            raise PairError(f'--distill fsp: needs layers of equal channels; the student has {channels_s}, the teacher '
                            f'{channels_t}')

    def forward(self, g_s: list, g_t: list):
        """Lists of maps (N, C, H, W) -> list of scalars, one for each two neighbouring layers."""
        with torch.no_grad():
            flows_t = self.flows(g_t)
        return [(s - t).pow(2).mean() for s, t in zip(self.flows(g_s), flows_t, strict=True)]

    def flows(self, maps):
        """(N, C_i, C_i+1) of each two neighbours: the channels' inner products over the positions, averaged."""
        flows = []
        for low, high in zip(maps, maps[1:], strict=False):
            low, high = (f.flatten(2) for f in match_size(low, high))
            flows.append(low @ high.transpose(1, 2) / low.shape[2])
        return flows


class FSPDistiller(Distiller):
    """The first stage fits the flows; the second trains the task with soft labels, and has no use for beta."""

    title = 'FSP'
    paper = 'Yim et al., CVPR 2017'
    uses = 'feats[:-1], in a first stage'
    init_needs = ('feats',)
    published = {'beta': 50.0}
    init_stage = True

    def build(self, opt, data, shapes_s, shapes_t):
        self.check_maps(opt, shapes_s.feats[:-1], shapes_t.feats[:-1])
        self.criterion = FSP(*([(2, *shape) for shape in shapes.feats[:-1]] for shapes in (shapes_s, shapes_t)))

    def init_loss(self, images):
        return sum(self.criterion(self.student.outputs(images).feats[:-1], self.ask_teacher(images).feats[:-1]))
