"""CC: the student's errors on neighbouring samples learn not to be correlated."""
from torch import nn


class LinearEmbed(nn.Module):
    """(N, ...) -> (N, dim_out), one linear layer."""

    def __init__(self, dim_in: int = 1024, dim_out: int = 128):
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Correlation(nn.Module):
    """Peng et al., ICCV 2019, Correlation Congruence for Knowledge Distillation, arXiv:1904.01802."""

    def forward(self, f_s, f_t):
        """Two (N, D) -> scalar: products of the absolute differences of each sample and the next, summed over D."""
        difference = (f_s - f_t).abs()
        return (difference[:-1] * difference[1:]).sum(1).mean()
