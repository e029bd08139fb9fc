"""FSP: the student learns the flow between the teacher's layers, then the task."""
import torch
from torch import nn

from .pool import match_size


class FSP(nn.Module):
    """Mean squared difference of the flows between neighbouring layers: inner products of their channels.

    s_shapes, t_shapes: the (N, C, H, W) of the layers. Raises ValueError where the channels differ. The authors train
    with this loss alone in a first stage, then with the labels and the soft labels.
    Yim et al., CVPR 2017, A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning.
    Published: weight 50, which makes no difference to a stage with this loss alone.
    """

    def __init__(self, s_shapes: list, t_shapes: list):
        super().__init__()
        channels_s, channels_t = ([shape[1] for shape in shapes] for shapes in (s_shapes, t_shapes))
        if channels_s != channels_t:
            raise ValueError(f'needs layers of equal channels; the student has {channels_s}, the teacher {channels_t}')

    def forward(self, g_s: list, g_t: list):
        """Lists of maps (N, C, H, W) -> list of scalars, one for each two neighbouring layers.

        The larger of two neighbours is average-pooled to the other's size.
        """
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
