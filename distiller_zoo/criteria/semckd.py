"""SemCKD: attention decides which teacher layers teach which student layer."""
import torch
import torch.nn.functional as F
from torch import nn


class MLPEmbed(nn.Module):
    """Two linear layers and l2 normalisation: (N, dim_in) -> (N, dim_out)."""

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


def _gram(feature):
    """Inner products of the samples' flattened features: (N, C, H, W) -> (N, N), one row a sample."""
    # The order of a sample's values does not matter here: the order in memory needs no copy.
    flat = feature.flatten(1) if feature.is_contiguous() else feature.permute(0, 2, 3, 1).flatten(1)
    return flat @ flat.t()


class SelfA(nn.Module):
    """The trained part of SemCKD: an attention over the teacher's layers, and a regressor for each pair of layers.

    s_len, t_len: numbers of layers of the student and of the teacher; s_n, s_t: lists of their channels.
    input_channel: the batch size. It is the width of the Gram matrices that the attention reads, so every batch must
    have it: leave a short last batch out. Queries and keys have input_channel / factor values.
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
                setattr(self, f'regressor{i}{j}', Regressor(s_n[i], s_t[j]))

    def attention(self, feat_s: list, feat_t: list):
        """(N, s_len, t_len): for every sample and student layer, a distribution over the teacher's layers.

        Raises ValueError for a batch that has not input_channel samples.
        """
        if len(feat_s[0]) != self.input_channel:
            raise ValueError(f'SelfA was made for batches of input_channel={self.input_channel} samples, but this one '
                             f'has {len(feat_s[0])}; leave a short last batch out, by drop_last=True of a DataLoader')
        query = torch.stack([getattr(self, f'query_weight{i}')(_gram(f)) for i, f in enumerate(feat_s)], 1)
        key = torch.stack([getattr(self, f'key_weight{j}')(_gram(f)) for j, f in enumerate(feat_t)], 2)
        return F.softmax(query @ key, dim=-1)

    def forward(self, feat_s: list, feat_t: list):
        """Lists of maps (N, C, H, W) -> projected student maps [i][j], teacher maps [i][j], attention.

        Where the sizes of a pair differ, the larger map is average-pooled to the smaller; a map is pooled once for each
        size, whichever pairs ask for it.
        """
        weight = self.attention(feat_s, feat_t)
        pooled = {}

        def at_size(side, layer, feature, size):
            if feature.shape[-1] == size:
                return feature
            if (side, layer, size) not in pooled:
                pooled[side, layer, size] = F.adaptive_avg_pool2d(feature, size)
            return pooled[side, layer, size]

        proj_s, target_t = [], []
        for i, f_s in enumerate(feat_s):
            proj_s.append([])
            target_t.append([])
            for j, f_t in enumerate(feat_t):
                size = min(f_s.shape[-1], f_t.shape[-1])
                proj_s[i].append(getattr(self, f'regressor{i}{j}')(at_size('s', i, f_s, size)))
                target_t[i].append(at_size('t', j, f_t, size))
        return proj_s, target_t, weight


class SemCKDLoss(nn.Module):
    """Mean squared error of every pair of a student and a teacher layer, weighted by SelfA's attention.

    Chen et al., AAAI 2021, Cross-Layer Distillation with Semantic Calibration, arXiv:2012.03236.
    Published: weight 400 for CIFAR-100, weight 50 for ImageNet.
    """

    def forward(self, proj_s, target_t, weight):
        """What SelfA returns -> scalar: sum over pairs and samples of attention * MSE, divided by N * s_len."""
        n, s_len, t_len = weight.shape
        error = [F.mse_loss(proj_s[i][j], target_t[i][j], reduction='none').mean((1, 2, 3))
                 for i in range(s_len) for j in range(t_len)]
        return (weight.flatten(1) * torch.stack(error, 1)).sum() / (n * s_len)
