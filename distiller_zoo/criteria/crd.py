"""CRD, contrastive representation distillation."""
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from .correlation import LinearEmbed


def gather_rows(x):
    """(N, ...) of each process, with equal N -> (processes * N, ...), in the order of the ranks, without gradient."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    x = x.detach().contiguous()
    rows = x.new_empty(dist.get_world_size() * len(x), *x.shape[1:])
    dist.all_gather(list(rows.chunk(dist.get_world_size())), x)
    return rows


class Embed(LinearEmbed):
    """A linear layer and l2 normalisation."""

    def __init__(self, dim_in: int, dim_out: int = 128):
        super().__init__(dim_in, dim_out)

    def forward(self, x):
        """(N, ...) -> (N, dim_out), rows of length 1."""
        return F.normalize(super().forward(x), dim=1)


class ContrastMemory(nn.Module):
    """The latest embedding of each training sample, from the student (memory_v1) and from the teacher (memory_v2).

    Z holds the normalisation constants of both, set by the first batch; -1 until then.
    """

    def __init__(self, feat_dim: int, n_data: int, temperature: float, momentum: float):
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        bound = 1 / math.sqrt(feat_dim / 3)
        for name in ('memory_v1', 'memory_v2'):
            self.register_buffer(name, torch.empty(n_data, feat_dim).uniform_(-bound, bound))
        self.register_buffer('Z', torch.full((2,), -1.0))

    def forward(self, v1, v2, idx, contrast_idx):
        """v1, v2 (N, D); idx (N,); contrast_idx (N, K+1), the positive first -> two (N, K+1) of exp(similarity) / Z."""
        # Multiply by the whole memory, then select: gathering K+1 rows of D values for each sample would move hundreds
        # of times as many bytes.
        out1, out2 = (torch.exp((v @ memory.t()).gather(1, contrast_idx) / self.temperature)
                      for v, memory in ((v1, self.memory_v2.clone()), (v2, self.memory_v1.clone())))
        with torch.no_grad():
            # The memories of all processes stay equal: each process stores the whole batch.
            estimate = gather_rows(torch.stack([out1.mean(), out2.mean()])[None] * len(self.memory_v1)).mean(0)
            self.Z.copy_(torch.where(self.Z < 0, estimate, self.Z))
            z1, z2 = self.Z.clone()
            v1, v2, idx = (gather_rows(x) for x in (v1, v2, idx))
            for v, memory in ((v1, self.memory_v1), (v2, self.memory_v2)):
                updated = memory[idx] * self.momentum + v * (1 - self.momentum)
                memory.index_copy_(0, idx, F.normalize(updated, dim=1))
        return out1 / z1, out2 / z2


class ContrastLoss(nn.Module):
    """Noise-contrastive estimation with noise that is uniform over n_data samples."""

    eps = 1e-7

    def __init__(self, n_data: int):
        super().__init__()
        self.n_data = n_data

    def forward(self, x):
        """(N, K+1), the positive first -> scalar, the mean over the samples."""
        noise = (x.shape[1] - 1) / self.n_data
        positive, negative = x[:, 0], x[:, 1:]
        log_true = (positive / (positive + noise + self.eps)).log().sum()
        log_false = (noise / (negative + noise + self.eps)).log().sum()
        return -(log_true + log_false) / len(x)


class CRDLoss(nn.Module):
    """Noise-contrastive estimation between an image's embedding by one net and the other net's memory.

    Its two linear layers are trained. Two memories keep the latest embedding of each training sample.
    s_dim, t_dim: widths of the nets' embeddings. n_data: number of training samples. feat_dim: width of the compared
    embeddings. nce_t: temperature. nce_m: momentum of the memories. opt: an object with these six attributes, instead
    of the arguments. Raises ValueError without s_dim, t_dim and n_data.
    Tian et al., ICLR 2020, Contrastive Representation Distillation, arXiv:1910.10699.
    Published: weight 0.8, feat_dim 128, nce_t 0.07, nce_m 0.5.
    """

    def __init__(self, opt=None, *, s_dim: int = 0, t_dim: int = 0, n_data: int = 0, feat_dim: int = 128,
                 nce_t: float = 0.07, nce_m: float = 0.5):
        super().__init__()
        if opt is not None:
            s_dim, t_dim, n_data, feat_dim, nce_t, nce_m = (
                getattr(opt, name) for name in ('s_dim', 't_dim', 'n_data', 'feat_dim', 'nce_t', 'nce_m'))
        if min(s_dim, t_dim, n_data) < 1:
            raise ValueError(f'CRDLoss: s_dim={s_dim}, t_dim={t_dim}, n_data={n_data}; give all three, at least 1')
        self.embed_s, self.embed_t = Embed(s_dim, feat_dim), Embed(t_dim, feat_dim)
        self.contrast = ContrastMemory(feat_dim, n_data, nce_t, nce_m)
        self.criterion = ContrastLoss(n_data)

    def forward(self, f_s, f_t, idx, contrast_idx):
        """f_s (N, s_dim), f_t (N, t_dim), idx (N,), contrast_idx (N, K+1), the positive first -> scalar.

        idx: the samples' numbers, 0 to n_data - 1. contrast_idx: from ContrastSampler. Each call updates the memories.
        """
        out_s, out_t = self.contrast(self.embed_s(f_s), self.embed_t(f_t), idx, contrast_idx)
        return self.criterion(out_s) + self.criterion(out_t)


class ContrastSampler(nn.Module):
    """Draws a positive and k negatives, samples of other classes, for each image of a batch, on the device.

    labels: (n_data,), the class of each training sample. relax: the positive is any sample of the image's class instead
    of the image itself. An image's negatives are distinct if the other classes have k samples, otherwise they are drawn
    with repetition.
    Published: k 16384.
    """

    def __init__(self, labels: torch.Tensor, k: int, relax: bool = False):
        super().__init__()
        self.k, self.relax = k, relax
        counts = torch.bincount(labels)
        # by_class lists the samples ordered by class; class c has starts[c] .. starts[c] + counts[c] - 1.
        for name, value in (('labels', labels), ('counts', counts), ('starts', counts.cumsum(0) - counts),
                            ('by_class', labels.argsort(stable=True))):
            self.register_buffer(name, value, persistent=False)
        self.largest = int(counts.max())
        self.fewest_negatives = len(labels) - self.largest

    @property
    def repeats(self) -> bool:
        return self.k > self.fewest_negatives

    def forward(self, index, target):
        """index (N,), the samples' numbers, and target (N,), their classes -> (N, k+1), the positive first."""
        positive = self._uniform(self.starts[target], self.counts[target], 1) if self.relax else index[:, None]
        if self.repeats:
            end = (self.starts + self.counts)[target]
            negative = self._uniform(end, len(self.labels) - self.counts[target], self.k)
        else:
            negative = self._without_repetition(target)
        return torch.cat([positive, negative], 1)

    def _uniform(self, start, count, k):
        """(N, k) samples from the `count` entries of by_class from `start` on; the end continues at the beginning."""
        finest = torch.float32 if start.device.type == 'mps' else torch.float64     # Apple's GPUs have no float64
        offset = (torch.rand(len(start), k, device=start.device, dtype=finest) * count[:, None]).long()
        offset = offset.minimum(count[:, None] - 1)     # float32 may round up
        return self.by_class[(start[:, None] + offset) % len(self.by_class)]

    def _without_repetition(self, target):
        """(N, k) distinct samples of other classes.

        A window of a random permutation of all samples is a random subset. The window is long enough to leave k samples
        without those of the image's class.
        """
        n, k = len(self.labels), self.k
        permutation = torch.randperm(n, device=target.device)
        start = torch.randint(n, (len(target), 1), device=target.device)
        window = permutation[(start + torch.arange(min(n, k + self.largest), device=target.device)) % n]
        is_negative = self.labels[window] != target[:, None]
        rank = is_negative.cumsum(1)
        column = torch.where(is_negative & (rank <= k), rank - 1, k)        # column k collects the rest
        return window.new_empty(len(target), k + 1).scatter_(1, column, window)[:, :k]
