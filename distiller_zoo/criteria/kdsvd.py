"""KDSVD: the student keeps how the teacher's main feature directions change from layer to layer."""
import torch
import torch.nn.functional as F
from torch import nn


class _TopEigenvectors(torch.autograd.Function):
    """The k eigenvectors of the largest eigenvalues, largest first: symmetric (N, M, M) -> (N, M, k).

    The usual gradient divides by the gaps between eigenvalues and is NaN where two are equal, as all zeros of a map of
    low rank are; here such a pair gets none.
    """

    @staticmethod
    def forward(ctx, matrix, k):
        # A diverged net's NaN would end eigh with an error of its own. eigh is also where a GPU is waited for.
        values, vectors = torch.linalg.eigh(matrix.nan_to_num(0, 0, 0))
        ctx.save_for_backward(values, vectors)
        ctx.k = k
        return vectors[..., -k:].flip(-1)

    @staticmethod
    def backward(ctx, grad):
        values, vectors = ctx.saved_tensors
        gap = values[:, None, -ctx.k:].flip(-1) - values[:, :, None]        # (N, M, k): of each wanted one to all
        floor = 1e-6 * values[:, -1:, None].abs()
        inverse = torch.where(gap.abs() > floor, gap, torch.inf).reciprocal()
        inner = vectors @ (vectors.transpose(1, 2) @ grad * inverse)
        full = inner @ vectors[..., -ctx.k:].flip(-1).transpose(1, 2)
        return (full + full.transpose(1, 2)) / 2, None


def _directions(f, k):
    """(N, C, H, W) -> (N, C, k): the first right singular vectors of each sample's positions-by-channels matrix."""
    x = f.flatten(2).transpose(1, 2)
    if x.shape[1] >= x.shape[2]:
        return _TopEigenvectors.apply(x.transpose(1, 2) @ x, k)
    left = _TopEigenvectors.apply(x @ x.transpose(1, 2), k)     # the smaller Gram matrix of the two
    return F.normalize(x.transpose(1, 2) @ left, dim=1)


class KDSVD(nn.Module):
    """Squared difference of how the main directions of the features change from layer to layer.

    Lee et al., ECCV 2018, Self-supervised Knowledge Distillation Using Singular Value Decomposition, arXiv:1807.06819.
    Published: weight 1.
    """

    candidates = 4      # student directions; the one nearest to the teacher's first is used

    def forward(self, g_s: list, g_t: list):
        """Lists of maps (N, C, H, W), equal C a pair -> list of scalars, one for each two neighbouring layers."""
        losses, before = [], None
        for f_s, f_t in zip(g_s, g_t, strict=False):
            with torch.no_grad():
                v_t = _directions(f_t, 1)
            v_s = _directions(f_s, min(self.candidates, f_s.shape[1], f_s.shape[2] * f_s.shape[3]))
            cosine = v_s.transpose(1, 2) @ v_t
            size = cosine.detach().abs()
            v_s = v_s @ (cosine.detach().sign() * (size == size.amax(1, keepdim=True)))
            if before is not None:
                rbf_s, rbf_t = (torch.exp(-(now - then.transpose(1, 2)).pow(2) / 8)
                                for now, then in zip((v_s, v_t), before, strict=True))
                losses.append((rbf_s - rbf_t).pow(2).sum() / len(f_s))
            before = v_s, v_t
        return losses
