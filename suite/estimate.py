"""The statistics of comparisons: ratios with their interval, growth of a cost with size, and its projection.

Wall times are compared as ratios, so everything is done on logarithms. Runs of one round are pairs: they were made
within minutes of each other, and a slow drift of the machine hits both.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

CONFIDENCE = 0.95
RESAMPLES = 300
EXPONENTS = (0.3, 2.0)  # from caches that soften growth to a quadratic algorithm


@dataclass(frozen=True)
class Ratio:
    """A ratio and its 95 % interval; the bounds are None where one pair is all there is."""

    value: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def band(self) -> float:
        """How far the interval reaches from 1 on either side, as a log ratio; infinite without an interval."""
        if self.low is None or self.high is None:
            return math.inf
        return max(abs(math.log(self.low)), abs(math.log(self.high)))

    def is_noise(self, band: float) -> bool:
        """Whether the ratio is no difference: its interval holds 1, or it lies within the noise `band`."""
        straddles = self.low is not None and self.high is not None and self.low <= 1 <= self.high
        return straddles or abs(math.log(self.value)) <= band


def t_quantile(freedom: float) -> float:
    """Two-sided Student quantile at the 95 % level."""
    from scipy.stats import t

    return float(t.ppf(0.5 + CONFIDENCE / 2, freedom))


def _interval(mean: float, error: float, freedom: float, pairs: int) -> Ratio:
    half = t_quantile(freedom) * error
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), pairs)


def paired(over: Mapping[int, float], under: Mapping[int, float]) -> Ratio | None:
    """Geometric mean of over/under by round, with Student's interval of the log ratios; None without a pair."""
    logs = [math.log(over[i] / under[i]) for i in sorted(over.keys() & under.keys())]
    if not logs:
        return None
    if len(logs) == 1:
        return Ratio(math.exp(logs[0]), None, None, 1)
    return _interval(fmean(logs), stdev(logs) / math.sqrt(len(logs)), len(logs) - 1, len(logs))


def unpaired(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """Ratio of the geometric means of two series from different days, with Welch's interval on logarithms."""
    a, b = [math.log(x) for x in over], [math.log(x) for x in under]
    mean, pairs = fmean(a) - fmean(b), min(len(a), len(b))
    if pairs < 2:
        return Ratio(math.exp(mean), None, None, pairs)
    va, vb = stdev(a) ** 2 / len(a), stdev(b) ** 2 / len(b)
    if va + vb == 0:
        return Ratio(math.exp(mean), math.exp(mean), math.exp(mean), pairs)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))  # Welch 1947
    return _interval(mean, math.sqrt(va + vb), freedom, pairs)


@dataclass(frozen=True)
class Growth:
    """cost(n) = fixed + rate * n ** exponent."""

    fixed: float
    rate: float
    exponent: float

    def at(self, size: float) -> float:
        return self.fixed + self.rate * float(size**self.exponent)


Series = Mapping[float, Sequence[float]]  # size -> costs measured there


def grow(series: Series) -> Growth:
    """Fit `Growth` to the medians by least squares of relative errors, no term below zero.

    Three sizes are needed to tell the exponent; with two it is taken to be 1. Raises ValueError with one.
    """
    from scipy.optimize import minimize_scalar

    sizes = sorted(series)
    costs = [median(series[n]) for n in sizes]
    if len(sizes) < 2:
        raise ValueError("growth needs two sizes at least")
    if len(sizes) == 2:
        return _at_exponent(sizes, costs, 1.0)[0]
    best = minimize_scalar(lambda c: _at_exponent(sizes, costs, c)[1], bounds=EXPONENTS, method="bounded")
    return _at_exponent(sizes, costs, float(best.x))[0]


def _at_exponent(sizes: Sequence[float], costs: Sequence[float], exponent: float) -> tuple[Growth, float]:
    """The best growth of one exponent and its residual; Lawson and Hanson's non-negative least squares."""
    from scipy.optimize import nnls

    largest = max(sizes)  # sizes as shares of the largest: powers stay near 1
    rows = [[1 / y, (n / largest) ** exponent / y] for n, y in zip(sizes, costs, strict=True)]
    (fixed, rate), residual = nnls(rows, [1.0] * len(rows))
    return Growth(float(fixed), float(rate) / largest**exponent, exponent), float(residual)


def resampled(series: Series, seed: int = 0) -> list[Growth]:
    """Growths of bootstrap samples (Efron 1979): repetitions are drawn with replacement within each size."""
    draw = random.Random(seed)
    return [
        grow({n: draw.choices(list(ys), k=len(ys)) for n, ys in series.items()}) for _ in range(RESAMPLES)
    ]


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of bootstrap values."""
    ordered = sorted(values)
    cut = (1 - CONFIDENCE) / 2 * (len(ordered) - 1)
    return ordered[round(cut)], ordered[round(len(ordered) - 1 - cut)]


@dataclass(frozen=True)
class Check:
    """The largest measured size, predicted from the smaller ones."""

    size: float
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative error of the prediction: 0.1 = 10 % too high."""
        return self.predicted / self.measured - 1


def check(series: Series) -> Check | None:
    """None with fewer than three sizes: nothing is left to predict from."""
    *smaller, largest = sorted(series)
    if len(smaller) < 2:
        return None
    predicted = grow({n: series[n] for n in smaller}).at(largest)
    return Check(largest, predicted, median(series[largest]))


@dataclass(frozen=True)
class Projection:
    """A cost at a size that was not measured, with its bounds."""

    size: float
    value: float
    low: float
    high: float

    def verdict(self, limit: float | None) -> str:
        """`yes`, `no`, or `too near to tell` against a limit."""
        if limit is None or self.high <= limit:
            return "yes"
        return "no" if self.low > limit else "too near to tell"


def project(series: Series, size: float, growths: Sequence[Growth]) -> Projection:
    """The cost at `size`: bounds from the bootstrap and from how wrong the last prediction was.

    The error of predicting the largest measured size from the smaller ones is taken to grow in proportion to the
    logarithm of the distance, and is added in quadrature to the spread of the bootstrap.
    """
    value = grow(series).at(size)
    low, high = bounds([g.at(size) for g in growths])
    spread = max(abs(math.log(value / low)), abs(math.log(high / value)))
    found, sizes = check(series), sorted(series)
    model = 0.0
    if found is not None and size > sizes[-1]:
        distance = math.log(size / sizes[-1]) / math.log(sizes[-1] / sizes[-2])
        model = abs(math.log1p(found.error)) * max(distance, 1.0)
    half = math.hypot(spread, model)
    return Projection(size, value, value * math.exp(-half), value * math.exp(half))


def crossing(slow: Growth, fast: Growth, low: float, high: float) -> float | None:
    """The size from which `fast` costs less than `slow`, between two sizes; None where it does not cross there."""
    from scipy.optimize import brentq

    def gap(log_size: float) -> float:
        n = math.exp(log_size)
        return math.log(slow.at(n) / fast.at(n))

    a, b = math.log(low), math.log(high)
    if gap(a) >= 0 or gap(b) <= 0:
        return None
    return math.exp(brentq(gap, a, b))
