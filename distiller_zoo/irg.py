"""IRG: the student keeps the graph of the samples, and how it changes from layer to layer."""
import torch
import torch.nn.functional as F
from torch import nn

from helper.cli import number
from helper.errors import UserError

from .base import Distiller
from .pairwise import squared_distances


def _edges(f):
    """(N, ...) -> (N, N) squared distances over the largest of them."""
    distances = squared_distances(f.flatten(1), eps=1e-12)
    return distances / (distances.max() + 1e-12)


class IRGLoss(nn.Module):
    """Liu et al., CVPR 2019, Knowledge Distillation via Instance Relationship Graph."""

    def __init__(self, w_graph: float = 1, w_transform: float = 1):
        super().__init__()
        self.w_graph, self.w_transform = w_graph, w_transform

    def forward(self, f_s, f_t, transform_s: list, transform_t: list, no_edge_transform: bool = False):
        """Embeddings (N, D) and lists of feature maps -> scalar.

        The maps are taken two at a time: how the graph changes from the first to the second is compared. Vertices count
        only where both nets' shapes agree.
        """
        with torch.no_grad():
            edges_t = _edges(f_t)
        loss = F.mse_loss(_edges(f_s), edges_t)
        if f_s.shape == f_t.shape:
            loss = loss + F.mse_loss(f_s, f_t)
        loss = self.w_graph * loss
        layers = list(zip(transform_s, transform_t, strict=True))
        for (s1, t1), (s2, t2) in zip(layers[::2], layers[1::2], strict=True):
            loss = loss + self.w_transform * self.transform(s1, s2, t1, t2, not no_edge_transform)
        return loss

    def transform(self, s1, s2, t1, t2, with_edges):
        """(change of the student's graph - change of the teacher's)^2, of edges and of vertices."""
        loss = s1.new_zeros(())
        if with_edges:
            with torch.no_grad():
                change_t = F.mse_loss(_edges(t1), _edges(t2))
            loss = loss + (F.mse_loss(_edges(s1), _edges(s2)) - change_t).pow(2)
        if s1.shape == s2.shape and t1.shape == t2.shape:
            loss = loss + (F.mse_loss(s1, s2) - F.mse_loss(t1, t2)).pow(2)
        return loss


class IRGDistiller(Distiller):
    title = 'IRG'
    paper = 'Liu et al., CVPR 2019'
    uses = 'feats[-1], feats[--transform_layer_s/_t]'
    needs = ('embedding', 'feats')
    published = {'beta': 0.005}
    float32 = True
    pairwise = True

    @classmethod
    def add_arguments(cls, add):
        layers = {'type': number(int, low=0), 'nargs': '+', 'default': [], 'metavar': 'LAYER'}
        add('--transform_layer_t', **layers, help="the teacher's features whose changes are compared, two for each")
        add('--transform_layer_s', **layers, help="the student's")
        add('--no_edge_transform', action='store_true', help='leave the edges out of these changes')

    def build(self, opt, data, shapes_s, shapes_t):
        self.layers_s, self.layers_t = opt.transform_layer_s, opt.transform_layer_t
        self.no_edge_transform = opt.no_edge_transform
        for flag, name, layers, shapes in (('--transform_layer_s', opt.model_s, self.layers_s, shapes_s.feats),
                                           ('--transform_layer_t', opt.model_t, self.layers_t, shapes_t.feats)):
            for layer in layers:
                if not 0 <= layer < len(shapes):
                    raise UserError(f'{flag} {layer}: {name} has feature layers 0..{len(shapes) - 1}')
        if len(self.layers_s) != len(self.layers_t) or len(self.layers_s) % 2:
            raise UserError(f'--transform_layer_s and --transform_layer_t: {len(self.layers_s)} and '
                            f'{len(self.layers_t)} layers; give both the same even number, two to a transformation')
        self.criterion = IRGLoss()

    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(out_s.embedding, out_t.embedding, [out_s.feats[i] for i in self.layers_s],
                              [out_t.feats[i] for i in self.layers_t], self.no_edge_transform)
