"""VkD, an orthogonal projector and normalised targets."""
import torch
import torch.nn.functional as F
from torch import nn


class OrthogonalProjector(nn.Module):
    """The trained part of VkD: a linear map without bias whose matrix (c_t, c_s) stays orthonormal in every step.

    Its columns are orthonormal if c_t >= c_s, else its rows. The matrix is a random orthonormal start times the Cayley
    transform of a skew-symmetric matrix, whose free entries are the lower triangle of `skew`. So every value of the
    parameter gives an orthonormal matrix, and weight decay pulls the matrix to its start.
    """

    def __init__(self, c_s: int, c_t: int):
        super().__init__()
        large, self.small, self.widens = max(c_s, c_t), min(c_s, c_t), c_t >= c_s
        self.skew = nn.Parameter(torch.zeros(large, self.small))
        self.register_buffer('start', torch.linalg.qr(torch.randn(large, large))[0])

    def matrix(self):
        """The matrix (c_t, c_s).

        For the skew-symmetric matrix A = [[a, -b'], [b, 0]] it is the first columns of (I - A/2)^-1 (I + A/2), for
        which an inverse of the smaller width is enough: x = (I - a/2 + b'b/4)^-1 gives [2x - I, bx].
        """
        lower, b = self.skew[:self.small].tril(-1), self.skew[self.small:]
        a, identity = lower - lower.t(), torch.eye(self.small, dtype=b.dtype, device=b.device)
        x, _ = torch.linalg.inv_ex(identity - a / 2 + b.t() @ b / 4)    # inv would wait for a GPU
        columns = self.start @ torch.cat([2 * x - identity, b @ x])
        return columns if self.widens else columns.t()

    def forward(self, f):
        """The student's embedding (N, c_s) -> (N, c_t)."""
        return F.linear(f, self.matrix())


class VkDLoss(nn.Module):
    """Smooth L1 loss of the projected embedding and the teacher's, which is normalised.

    norm 'layer': only the teacher's embedding is normalised, each sample over its channels. 'standardize', published
    for detection: both are, each channel over the batch; a constant channel becomes 0.
    Miles, Elezi and Deng, CVPR 2024, VkD: Improving Knowledge Distillation using Orthogonal Projections,
    arXiv:2403.06213.
    Published for transformers on ImageNet: weight 1, beside soft labels with T 1.
    """

    def __init__(self, norm: str = 'layer'):
        super().__init__()
        self.standardizes = norm == 'standardize'

    def forward(self, h, f_t):
        """Embeddings (N, C): the student's, from OrthogonalProjector, and the teacher's -> scalar."""
        if self.standardizes:
            return F.smooth_l1_loss(standardize_channels(h), standardize_channels(f_t))
        return F.smooth_l1_loss(h, F.layer_norm(f_t, f_t.shape[1:]))


def standardize_channels(x):
    """(N, C) -> each channel with mean 0 and deviation 1 over the batch; a constant one becomes 0."""
    if len(x) < 2:
        raise ValueError("VkDLoss('standardize') normalises over the samples of a batch: give at least two")
    mean = x.mean(0)
    variance = (x - mean).pow(2).sum(0) / (len(x) - 1)
    varies = variance > (8 * torch.finfo(x.dtype).eps * mean).pow(2)        # less is rounding
    return (x - mean) * varies / torch.where(varies, variance, 1).sqrt()
