"""Differences of means over trials, and the standard deviation of a difference (sigma)."""
from collections.abc import Iterable
from math import sqrt
from statistics import mean
from typing import NamedTuple

from scipy.stats import t as student_t

CLEAR = 2       # sigmas beyond which two means count as different


class Mean(NamedTuple):
    """The mean of some trials."""

    value: float                # percent
    deviation: float | None     # sample standard deviation of the trials; None for one trial, or if it is unknown
    trials: int


class Difference(NamedTuple):
    """A difference of means, or a sum of such differences."""

    value: float                # percentage points
    sigma: float | None         # its standard deviation; None if no mean in it has a deviation

    @property
    def in_sigmas(self) -> float | None:
        return self.value / self.sigma if self.sigma else None

    @property
    def is_clear(self) -> bool:
        """Whether it is larger than CLEAR sigmas. A difference without sigma is not."""
        return self.sigma is not None and abs(self.value) > CLEAR * self.sigma

    @property
    def remark(self) -> str:
        """' (within 2 σ)' for a text if the difference is not clear; '' if it is, or has no sigma."""
        return f' (within {CLEAR} σ)' if self.sigma and not self.is_clear else ''


def weighted_sum(terms: Iterable[tuple[float, Mean]]) -> Difference:
    """Return the sum of weight * mean, and sigma = sqrt(sum of weight^2 * deviation^2 / trials).

    The means must be independent: give one of several runs in two means only once, with the sum of its weights. A mean
    without a deviation gets the root mean square of the deviations of the others.
    """
    terms = [*terms]
    squares = [m.deviation ** 2 for _, m in terms if m.deviation is not None]
    value = sum(weight * m.value for weight, m in terms)
    if not any(squares):
        return Difference(value, None)
    usual = mean(squares)
    variance = sum(weight ** 2 * (usual if m.deviation is None else m.deviation ** 2) / m.trials for weight, m in terms)
    return Difference(value, sqrt(variance) or None)


def difference(a: Mean, b: Mean) -> Difference:
    """Return a - b with sigma = sqrt(deviation_a^2 / trials_a + deviation_b^2 / trials_b)."""
    return weighted_sum([(1, a), (-1, b)])


def sampling_sigma(percent: float, images: int) -> float:
    """Return the standard deviation of the difference of two accuracies that are each measured on `images` test images.

    This is sqrt(2 p (1 - p) / images), in percentage points: the binomial deviation of two independent nets. Nets that
    make similar mistakes on the same images differ by less.
    """
    return sqrt(2 * percent * (100 - percent) / images)


def beyond_by_chance(trials: int) -> float | None:
    """Return the part of comparisons of two equal means that are beyond CLEAR sigmas, each of `trials` trials.

    This is Student's t distribution with 2 * trials - 2 degrees of freedom; None for one trial.
    """
    return float(2 * student_t.sf(CLEAR, 2 * trials - 2)) if trials > 1 else None


def signed(value: float, digits: int) -> str:
    """Return '+0.12' or '-0.12'. A value that rounds to zero has no sign."""
    text = f'{value:+.{digits}f}'
    return text if float(text) else text[1:]
