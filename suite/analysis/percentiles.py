"""Percentiles with intervals. With too few samples there is no percentile.

Distribution-free intervals from order statistics (David and Nagaraja, Order Statistics, section 7.1): of n independent samples the number
below the true q-quantile is binomial(n, q), whatever the distribution. Samples of one process depend on each other and are worth fewer
independent ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log
from typing import Any

TAIL = 0.01  # probability that the true value is below an interval, and the same above it
LEAST_EFFECTIVE = 20  # least effective number of independent samples for an estimate of their dependence


@dataclass(frozen=True)
class Quantile:
    """A percentile with its 98 % interval; the bounds are None if the samples depend too much on each other."""

    value: float
    low: float | None
    high: float | None
    count: int


def least_count(q: float) -> int:
    """The number of samples whose largest is above the true q-quantile with 99 % probability: 459 for the 99th percentile.

    >>> [least_count(q) for q in (0.5, 0.9, 0.95, 0.99)]
    [7, 44, 90, 459]
    """
    return ceil(log(TAIL) / log(q))


def quantile(samples: Sequence[float], q: float) -> Quantile | None:
    """The q-quantile (nearest rank) of samples in the order of time, with its interval; None for fewer than `least_count` samples."""
    import numpy as np

    n, least = len(samples), least_count(max(q, 1 - q))
    if n < least:
        return None
    ordered = np.sort(samples)
    value = float(ordered[ceil(q * n) - 1])
    worth = effective_count(samples, value)
    if worth < (least if worth == n else max(least, LEAST_EFFECTIVE)):
        return Quantile(value, None, None, n)
    low, high = ranks(worth, q)
    share = n / worth
    low, high = max(floor(low * share), 1), min(ceil(high * share), n)
    return Quantile(value, float(ordered[low - 1]), float(ordered[high - 1]), n)


def effective_count(samples: Sequence[float], value: float) -> int:
    """The number of independent samples that give as much information on a percentile at `value`.

    By the longer autocorrelation time of two series: the samples' ranks, which is the more precise estimate, and whether a sample is
    above `value`, which shows slow runs that come in bursts.
    """
    import numpy as np
    from scipy.stats import rankdata

    series = rankdata(samples), (np.asarray(samples) > value).astype(float)
    return int(len(samples) / max(map(correlation_time, series)))


def correlation_time(series: Any) -> float:
    """1 + twice the sum of autocorrelations, at least 1, by the initial monotone sequence estimator of Geyer 1992, section 3.3."""
    import numpy as np

    n = len(series)
    centred = series - np.mean(series)
    spectrum = np.fft.rfft(centred, 2 * n)  # padded with n zeros: no lag wraps around
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[: n // 2 * 2]
    if covariance[0] <= 0:
        return 1.0
    pairs = covariance.reshape(-1, 2).sum(axis=1) / covariance[0]
    positive = pairs[: int(np.argmin(pairs > 0))] if (pairs <= 0).any() else pairs
    return max(1.0, 2 * float(np.minimum.accumulate(positive).sum()) - 1)


def ranks(n: int, q: float) -> tuple[int, int]:
    """Ranks (from 1) of n independent samples between which the true q-quantile lies, except with probability TAIL on each side.

    If B of the n samples are below it, the r-th is above it for B < r, and below it for B >= r.
    """
    from scipy.stats import binom

    low, high = binom.ppf((TAIL, 1 - TAIL), n, q)
    return max(int(low), 1), min(int(high) + 1, n)
