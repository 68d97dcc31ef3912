"""Percentiles that say how sure they are, and that are refused where the samples are too few.

Distribution-free intervals from order statistics (David and Nagaraja, Order Statistics, section 7.1): of n independent samples the number
below the true q-quantile is binomial(n, q), whatever the distribution. Samples of one process depend on each other, and count for fewer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log
from typing import Any

TAIL = 0.01  # chance of the true value on either side of an interval
LEAST_EFFECTIVE = (
    20  # independent samples that dependent ones must be worth: of fewer their dependence cannot be told
)


@dataclass(frozen=True)
class Quantile:
    """A percentile with its 98 % interval; the bounds are None where the samples depend too much on each other."""

    value: float
    low: float | None
    high: float | None
    count: int


def least_count(q: float) -> int:
    """Samples of which the largest lies above the true q-quantile with 99 % probability: 459 for the 99th percentile.

    >>> [least_count(q) for q in (0.5, 0.9, 0.95, 0.99)]
    [7, 44, 90, 459]
    """
    return ceil(log(TAIL) / log(q))


def quantile(samples: Sequence[float], q: float) -> Quantile | None:
    """The q-quantile (nearest rank) of samples in the order of time, and its interval; None for fewer than `least_count`."""
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
    """How many independent samples tell as much as these of a percentile that lies at `value`.

    By the autocorrelation time of the samples' ranks or of being above `value`, whichever is longer: the first is the surer estimate, the
    second sees slow runs that come in bursts.
    """
    import numpy as np
    from scipy.stats import rankdata

    series = rankdata(samples), (np.asarray(samples) > value).astype(float)
    return int(len(samples) / max(map(correlation_time, series)))


def correlation_time(series: Any) -> float:
    """1 + twice the sum of autocorrelations, at least 1: the initial monotone sequence of Geyer 1992, section 3.3."""
    import numpy as np

    n = len(series)
    centred = series - np.mean(series)
    spectrum = np.fft.rfft(centred, 2 * n)  # as long again in zeros: no lag wraps around
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[: n // 2 * 2]
    if covariance[0] <= 0:
        return 1.0
    pairs = covariance.reshape(-1, 2).sum(axis=1) / covariance[0]
    positive = pairs[: int(np.argmin(pairs > 0))] if (pairs <= 0).any() else pairs
    return max(1.0, 2 * float(np.minimum.accumulate(positive).sum()) - 1)


def ranks(n: int, q: float) -> tuple[int, int]:
    """Ranks (from 1) of n independent samples that enclose the true q-quantile but for a chance of at most TAIL on each side.

    With B of the n samples below it, the r-th lies above it when B < r, and below it when B >= r.
    """
    from scipy.stats import binom

    low, high = binom.ppf((TAIL, 1 - TAIL), n, q)
    return max(int(low), 1), min(int(high) + 1, n)
