"""FSP, flow of solution procedure."""
import torch
from torch import nn

from .common import match_size


class FSP(nn.Module):
    """Mean squared difference of the FSP matrices: inner products of the channels of two neighbouring layers.

    s_shapes, t_shapes: the (N, C, H, W) of the layers. Raises ValueError where the channels differ. The authors train
    with this loss alone in a first stage, then with labels and soft labels.
    Yim et al., CVPR 2017, A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning.
    Published: weight 50, which has no effect in a stage with this loss alone.
    """

    def __init__(self, s_shapes: list, t_shapes: list):
        super().__init__()
        channels_s, channels_t = ([shape[1] for shape in shapes] for shapes in (s_shapes, t_shapes))
        if channels_s != channels_t:
            raise ValueError(f'needs layers of equal channels; the student has {channels_s}, the teacher {channels_t}')

    def forward(self, g_s: list, g_t: list):
        """Lists of maps (N, C, H, W) -> a list of scalars, one for each two neighbouring layers.

        The larger of two neighbours is average-pooled to the size of the other.
        """
        with torch.no_grad():
            matrices_t = self.fsp_matrices(g_t)
        return [(s - t).pow(2).mean() for s, t in zip(self.fsp_matrices(g_s), matrices_t, strict=True)]

    def fsp_matrices(self, maps):
        """(N, C_i, C_i+1) for each two neighbours: the channels' inner products over the positions, averaged."""
        matrices = []
        for low, high in zip(maps, maps[1:], strict=False):
            low, high = (f.flatten(2) for f in match_size(low, high))
            matrices.append(low @ high.transpose(1, 2) / low.shape[2])
        return matrices
