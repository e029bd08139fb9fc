"""KDSVD, knowledge distillation by singular value decomposition."""
import torch
import torch.nn.functional as F
from torch import nn


class _TopEigenvectors(torch.autograd.Function):
    """Eigenvectors of the k largest eigenvalues, largest first: symmetric (N, M, M) -> (N, M, k).

    torch's gradient divides by the gaps between eigenvalues, which are 0 between the null directions of a low-rank map.
    Here equal eigenvalues contribute no gradient.
    """

    @staticmethod
    def forward(ctx, matrix, k):
        # eigh fails on NaN; let a diverged run reach its own check. eigh also waits for a GPU.
        values, vectors = torch.linalg.eigh(matrix.nan_to_num(0, 0, 0))
        ctx.save_for_backward(values, vectors)
        ctx.k = k
        return vectors[..., -k:].flip(-1)

    @staticmethod
    def backward(ctx, grad):
        values, vectors = ctx.saved_tensors
        gap = values[:, None, -ctx.k:].flip(-1) - values[:, :, None]        # (N, M, k)
        floor = 1e-6 * values[:, -1:, None].abs()
        inverse = torch.where(gap.abs() > floor, gap, torch.inf).reciprocal()
        inner = vectors @ (vectors.transpose(1, 2) @ grad * inverse)
        full = inner @ vectors[..., -ctx.k:].flip(-1).transpose(1, 2)
        return (full + full.transpose(1, 2)) / 2, None


def _singular_vectors(f, k):
    """(N, C, H, W) -> (N, C, k): the first right singular vectors of each sample's matrix (H * W, C)."""
    x = f.flatten(2).transpose(1, 2)
    if x.shape[1] >= x.shape[2]:
        return _TopEigenvectors.apply(x.transpose(1, 2) @ x, k)
    left = _TopEigenvectors.apply(x @ x.transpose(1, 2), k)     # the smaller of the two Gram matrices
    return F.normalize(x.transpose(1, 2) @ left, dim=1)


class KDSVD(nn.Module):
    """Squared difference of how the features' first singular vectors change from layer to layer.

    Lee et al., ECCV 2018, Self-supervised Knowledge Distillation Using Singular Value Decomposition, arXiv:1807.06819.
    Published: weight 1.
    """

    candidates = 4      # student vectors; the loss uses the one nearest to the teacher's first

    def forward(self, g_s: list, g_t: list):
        """Lists of maps (N, C, H, W), equal C in a pair -> a list of scalars, one for each two neighbouring layers."""
        losses, previous = [], None
        for f_s, f_t in zip(g_s, g_t, strict=False):
            with torch.no_grad():
                v_t = _singular_vectors(f_t, 1)
            v_s = _singular_vectors(f_s, min(self.candidates, f_s.shape[1], f_s.shape[2] * f_s.shape[3]))
            cosine = (v_s.transpose(1, 2) @ v_t).detach()
            size = cosine.abs()
            v_s = v_s @ (cosine.sign() * (size == size.amax(1, keepdim=True)))
            if previous is not None:
                rbf_s, rbf_t = (torch.exp(-(v - v_before.transpose(1, 2)).pow(2) / 8)
                                for v, v_before in zip((v_s, v_t), previous, strict=True))
                losses.append((rbf_s - rbf_t).pow(2).sum() / len(f_s))
            previous = v_s, v_t
        return losses
