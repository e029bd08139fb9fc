"""SemCKD, semantic calibration."""
import torch
import torch.nn.functional as F
from torch import nn

from .common import pool_to


class MLPEmbed(nn.Module):
    """Two linear layers and l2 normalisation."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.linear1 = nn.Linear(dim_in, 2 * dim_out)
        self.linear2 = nn.Linear(2 * dim_out, dim_out)

    def forward(self, x):
        """(N, dim_in) -> (N, dim_out), rows of length 1."""
        return F.normalize(self.linear2(F.relu(self.linear1(x))), dim=1)


class Regressor(nn.Module):
    """Maps a student's feature map to a teacher's channels: (N, c_s, H, W) -> (N, c_t, H, W)."""

    def __init__(self, c_s: int, c_t: int):
        super().__init__()
        mid = 2 * c_t
        self.regressor = nn.Sequential(
            nn.Conv2d(c_s, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.ReLU(inplace=True),
            nn.Conv2d(mid, mid, 3, padding=1, bias=False), nn.BatchNorm2d(mid), nn.ReLU(inplace=True),
            nn.Conv2d(mid, c_t, 1, bias=False))

    def forward(self, x):
        return self.regressor(x)


def _gram(f):
    """(N, C, H, W) -> (N, N): inner products of the flattened samples."""
    # The order of a sample's values does not affect the product: flatten in memory order, without a copy.
    flat = f.flatten(1) if f.is_contiguous() else f.permute(0, 2, 3, 1).flatten(1)
    return flat @ flat.t()


class SelfA(nn.Module):
    """The trained part of SemCKD: attention over the teacher's layers, and a regressor for each pair of layers.

    s_len, t_len: numbers of layers of the student and of the teacher. s_n, s_t: lists of the student's and the
    teacher's channels. input_channel: the batch size, the width of the Gram matrices that the attention reads. Every
    batch must have this size: drop a short last batch. Queries and keys have input_channel / factor values.
    """

    def __init__(self, s_len: int, t_len: int, input_channel: int, s_n: list, s_t: list, factor: int = 4):
        super().__init__()
        self.s_len, self.t_len, self.input_channel = s_len, t_len, input_channel
        width = max(1, input_channel // factor)
        for j in range(t_len):
            setattr(self, f'key_weight{j}', MLPEmbed(input_channel, width))
        for i in range(s_len):
            setattr(self, f'query_weight{i}', MLPEmbed(input_channel, width))
            for j in range(t_len):
                setattr(self, self.regressor_name(i, j), Regressor(s_n[i], s_t[j]))

    def regressor_name(self, i: int, j: int) -> str:
        """The authors' name for the regressor of student layer i and teacher layer j, if it is unique."""
        return f'regressor{i}{j}' if max(self.s_len, self.t_len) <= 10 else f'regressor{i}_{j}'

    def attention(self, feat_s: list, feat_t: list):
        """(N, s_len, t_len): for each sample and student layer, a distribution over the teacher's layers.

        Raises ValueError for a batch of another size than input_channel.
        """
        if len(feat_s[0]) != self.input_channel:
            raise ValueError(f'SelfA was made for batches of input_channel={self.input_channel} samples, but this one '
                             f'has {len(feat_s[0])}; leave a short last batch out, by drop_last=True of a DataLoader')
        query = torch.stack([getattr(self, f'query_weight{i}')(_gram(f)) for i, f in enumerate(feat_s)], 1)
        key = torch.stack([getattr(self, f'key_weight{j}')(_gram(f)) for j, f in enumerate(feat_t)], 2)
        return F.softmax(query @ key, dim=-1)

    def forward(self, feat_s: list, feat_t: list):
        """Lists of maps (N, C, H, W) -> projected student maps [i][j], teacher maps [i][j], attention.

        The larger map of a pair is average-pooled to the size of the other. Each map is pooled once for each size.
        """
        weight = self.attention(feat_s, feat_t)
        pooled = {}

        def pool_once(net, layer, f, size):
            if (net, layer, size) not in pooled:
                pooled[net, layer, size] = pool_to(f, size)
            return pooled[net, layer, size]

        proj_s, target_t = [], []
        for i, f_s in enumerate(feat_s):
            sizes = [min(f_s.shape[-1], f_t.shape[-1]) for f_t in feat_t]
            proj_s.append([getattr(self, self.regressor_name(i, j))(pool_once('s', i, f_s, size))
                           for j, size in enumerate(sizes)])
            target_t.append([pool_once('t', j, f_t, sizes[j]) for j, f_t in enumerate(feat_t)])
        return proj_s, target_t, weight


class SemCKDLoss(nn.Module):
    """Mean squared error of each pair of a student and a teacher layer, weighted by SelfA's attention.

    Chen et al., AAAI 2021, Cross-Layer Distillation with Semantic Calibration, arXiv:2012.03236.
    Published: weight 400 for CIFAR-100, weight 50 for ImageNet.
    """

    def forward(self, proj_s, target_t, weight):
        """SelfA's output -> scalar: the sum of attention * MSE over pairs and samples, divided by N * s_len."""
        n, s_len, t_len = weight.shape
        error = [F.mse_loss(proj_s[i][j], target_t[i][j], reduction='none').mean((1, 2, 3))
                 for i in range(s_len) for j in range(t_len)]
        return (weight.flatten(1) * torch.stack(error, 1)).sum() / (n * s_len)
