"""CC, correlation congruence."""
from torch import nn


class LinearEmbed(nn.Module):
    """The trained part of CC, one for each net: a linear layer.

    dim_in: number of values of a flattened sample.
    """

    def __init__(self, dim_in: int = 1024, dim_out: int = 128):
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)

    def forward(self, x):
        """(N, ...) -> (N, dim_out)."""
        return self.linear(x.flatten(1))


class Correlation(nn.Module):
    """Correlation of the student's absolute errors on neighbouring samples of the batch.

    Peng et al., ICCV 2019, Correlation Congruence for Knowledge Distillation, arXiv:1904.01802.
    Published: weight 0.02.
    """

    def forward(self, f_s, f_t):
        """Embeddings (N, D) of both nets, from a LinearEmbed each -> scalar. Raises ValueError for a single sample."""
        if len(f_s) < 2:
            raise ValueError('Correlation compares the samples of a batch: give at least two')
        error = (f_s - f_t).abs()
        return (error[:-1] * error[1:]).sum(1).mean()
