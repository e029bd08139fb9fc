"""Relations between the samples of a batch, which several methods compare."""
import torch


def squared_distances(x, eps: float):
    """(N, D) -> (N, N): squared Euclidean distances, at least eps, exactly 0 on the diagonal."""
    square = x.pow(2).sum(1)
    distances = (square[:, None] + square - 2 * x @ x.t()).clamp(min=eps)
    return distances * (1 - torch.eye(len(x), device=x.device, dtype=x.dtype))


def cosine_kernel(x, eps: float):
    """(N, D) -> (N, N): (1 + cosine) / 2, from 0 to 1."""
    x = x / (x.norm(dim=1, keepdim=True) + eps)
    return (x @ x.t() + 1) / 2


def row_probabilities(kernel):
    """Every row divided by its sum."""
    return kernel / kernel.sum(1, keepdim=True)
