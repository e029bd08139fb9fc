"""IRG, instance relationship graph."""
import torch
import torch.nn.functional as F
from torch import nn

from .common import squared_distances


def _edges(f):
    """(N, ...) -> (N, N): the samples' squared distances, divided by the largest."""
    distances = squared_distances(f.flatten(1), eps=1e-12)
    return distances / (distances.max() + 1e-12)


class IRGLoss(nn.Module):
    """Differences of the nets' graphs of the samples, and of how the graphs change from layer to layer.

    The samples are the vertices, their distances the edges. w_graph: weight of the graph of the embeddings.
    w_transform: weight of the changes.
    Liu et al., CVPR 2019, Knowledge Distillation via Instance Relationship Graph.
    Published: weight 0.005, w_graph 1, w_transform 1.
    """

    def __init__(self, w_graph: float = 1, w_transform: float = 1):
        super().__init__()
        self.w_graph, self.w_transform = w_graph, w_transform

    def forward(self, f_s, f_t, transform_s: list, transform_t: list, no_edge_transform: bool = False):
        """Embeddings (N, D), and lists of feature maps of equal, even length, or empty lists -> scalar.

        The change from map 0 to map 1 is compared, from map 2 to map 3, and so on. Vertices are compared only where
        shapes agree. no_edge_transform leaves out the changes of the edges.
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
        """Squared difference of the two nets' changes, of the edges plus of the vertices."""
        loss = s1.new_zeros(())
        if with_edges:
            with torch.no_grad():
                change_t = F.mse_loss(_edges(t1), _edges(t2))
            loss = loss + (F.mse_loss(_edges(s1), _edges(s2)) - change_t).pow(2)
        if s1.shape == s2.shape and t1.shape == t2.shape:
            loss = loss + (F.mse_loss(s1, s2) - F.mse_loss(t1, t2)).pow(2)
        return loss
