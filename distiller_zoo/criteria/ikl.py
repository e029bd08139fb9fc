"""IKL and GKL, decoupled divergences: differences of pairs of logits, and soft labels."""
import torch
import torch.nn.functional as F
from torch import nn


class ClassMeans(nn.Module):
    """The mean probabilities of each class in the epoch before, which IKL and GKL may take as weights.

    Cui et al., NeurIPS 2024, arXiv:2305.13948. `table` has a row for each class, at first 1 / classes; a class without
    samples in an epoch keeps its row.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.register_buffer('table', torch.full((num_classes, num_classes), 1 / num_classes))
        self.register_buffer('sums', torch.zeros(num_classes, num_classes))
        self.register_buffer('counts', torch.zeros(num_classes))

    def forward(self, target):
        """target (N,) -> the rows of these classes (N, classes)."""
        return self.table[target]

    @torch.no_grad()
    def add(self, probabilities, target) -> None:
        """Count a batch of the epoch: probabilities (N, classes), target (N,)."""
        self.sums.index_add_(0, target, probabilities)
        self.counts.index_add_(0, target, torch.ones_like(target, dtype=self.counts.dtype))

    @torch.no_grad()
    def turn(self) -> None:
        """At the end of an epoch: the means of its samples become the table."""
        seen = self.counts[:, None]
        self.table.copy_(torch.where(seen > 0, self.sums / seen.clamp(min=1), self.table))
        self.sums.zero_()
        self.counts.zero_()


class IKLLoss(nn.Module):
    """beta times a weighted sum over pairs of classes, plus alpha times the soft cross-entropy.

    The sum is 1/4 of w_j w_k (d_j - d_k)^2 over all j, k, with d = logits_t - logits_s. The weights w are the rows of
    `prior`, without it the teacher's probabilities at weight_temperature. The soft cross-entropy, at `temperature`, is
    not multiplied by temperature^2.
    Cui et al., NeurIPS 2024, Decoupled Kullback-Leibler Divergence Loss, arXiv:2305.13948.
    Published: weight 1, which grows over 20 epochs, and the defaults for CIFAR-100; weight 1, beta 0.5, temperature 1,
    weight_temperature 1 and a prior for ImageNet.
    """

    power = 1.0     # of the weights

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0,
                 weight_temperature: float = 100.0):
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.temperature, self.weight_temperature = temperature, weight_temperature

    def forward(self, logits_s, logits_t, prior=None):
        """Logits (N, classes) of both nets, prior (N, classes) from ClassMeans or None -> scalar."""
        if prior is None:       # a power of a probability that underflows need not underflow
            weights = torch.exp(self.power * F.log_softmax(logits_t / self.weight_temperature, dim=1))
        else:
            weights = prior ** self.power
        total = weights.sum(1, keepdim=True)
        d = logits_t - logits_s
        squares = (weights * (d - (weights * d).sum(1, keepdim=True) / total).pow(2)).sum(1)
        pairs = self.mean_pairs(total[:, 0] * squares / 2, total[:, 0])
        p_t, log_p_s = F.softmax(logits_t / self.temperature, dim=1), F.log_softmax(logits_s / self.temperature, dim=1)
        return self.beta * pairs - self.alpha * (p_t * log_p_s).sum(1).mean()

    def mean_pairs(self, pairs, total):
        """The mean over the batch. pairs (N,): the samples' sums over pairs; total (N,): their sums of weights."""
        return pairs.mean()


class GKLLoss(IKLLoss):
    """IKLLoss with normalised sums over pairs: logits of both nets and a prior, as IKLLoss takes them -> scalar.

    The weights are raised to `power`; power 0 gives each class the weight 1. The sum over pairs of the whole batch is
    divided by the sum of its samples' squared sums of weights.
    Cui et al., TPAMI 2026, Generalized Kullback-Leibler Divergence Loss, arXiv:2503.08038.
    Published, all with a prior: weight 1, which grows over 20 epochs, and the defaults for CIFAR-100; weight 1, which
    grows over 5 epochs, beta 0.5, power 0.6, temperature 1, weight_temperature 1 for ImageNet.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 16.0, power: float = 0.05, temperature: float = 4.0,
                 weight_temperature: float = 4.0):
        super().__init__(alpha, beta, temperature, weight_temperature)
        self.power = power

    def mean_pairs(self, pairs, total):
        return pairs.sum() / total.pow(2).sum()
