"""Percentiles that say how sure they are, and that are refused where the samples are too few.

Distribution-free intervals from order statistics (David and Nagaraja, Order Statistics, section 7.1): of n samples the number
below the true q-quantile is binomial(n, q), whatever the distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, lgamma, log, log1p

TAIL = 0.01  # chance of the true value on either side of an interval


@dataclass(frozen=True)
class Quantile:
    """A percentile with its 98 % interval."""

    value: float
    low: float
    high: float
    count: int


def least_count(q: float) -> int:
    """Samples of which the largest lies above the true q-quantile with 99 % probability: 459 for the 99th percentile.

    >>> [least_count(q) for q in (0.5, 0.9, 0.95, 0.99)]
    [7, 44, 90, 459]
    """
    return ceil(log(TAIL) / log(q))


def quantile(samples: Sequence[float], q: float) -> Quantile | None:
    """The q-quantile (nearest rank) and its interval; None for fewer samples than `least_count`."""
    n = len(samples)
    if n < least_count(max(q, 1 - q)):
        return None
    ordered = sorted(samples)
    low, high = ranks(n, q)
    return Quantile(ordered[ceil(q * n) - 1], ordered[low - 1], ordered[high - 1], n)


def ranks(n: int, q: float) -> tuple[int, int]:
    """Ranks (from 1) of the samples that enclose the true q-quantile but for a chance of at most TAIL on each side.

    With B of the n samples below it, the r-th lies above it when B < r, and below it when B >= r.
    """
    at_most, low, high = 0.0, 1, n
    for k in range(n):
        at_most += binomial(n, k, q)
        if at_most <= TAIL:
            low = k + 1
        if at_most >= 1 - TAIL:
            high = k + 1
            break
    return low, high


def binomial(n: int, k: int, q: float) -> float:
    """Probability of k successes of n."""
    chosen = lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
    return exp(chosen + k * log(q) + (n - k) * log1p(-q))
