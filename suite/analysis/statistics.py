"""The statistics of comparisons: ratios with their interval, growth of a cost with size, and its projection.

Wall times are compared as ratios, so all computations are on logarithms. Runs of one round are pairs: they ran within
minutes of each other, and a slow drift of the machine affects both. Runs of different days are compared in `days.py`.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from buzzer.suite.analysis import scaling
from buzzer.suite.analysis.scaling import CONFIDENCE, EXPONENTS, Series

LEAST_SIZES = 3  # with two sizes every law fits
LEAST_ROUNDS = 3  # for an interval; two show their difference, but hardly their noise
SURE_ROUNDS = 5  # below this number, an interval of 95 % rests on the assumption of normal noise
LEAST_REPEATED = 2  # runs of the sizes of a projection beyond the first of each size
REPEATED = "2 rounds"  # what gives them, for users
YES, NO, NEAR = "yes", "no", "too near to tell"  # verdicts on a limit


@dataclass(frozen=True)
class Ratio:
    """A ratio and its 95 % interval; the bounds are None with too few runs.

    pairs: the number of rounds, or of runs or days of the smaller side.
    """

    value: float
    low: float | None
    high: float | None
    pairs: int

    def is_noise(self, band: float | None) -> bool | None:
        """Whether the ratio shows no difference: its interval contains 1, or it is within the noise `band` (a log ratio).

        None without an interval and without a band.
        """
        within = band is not None and abs(math.log(self.value)) <= band
        if self.low is None or self.high is None:
            return None if band is None else within
        return within or self.low <= 1 <= self.high


def sureness(rounds: int) -> float:
    """The highest confidence of an interval for a median of `rounds` values, without an assumption about their distribution.

    It is that of their whole range: 1 - 2 ** (1 - rounds), because each value is above the median as often as below it (Conover,
    Practical Nonparametric Statistics, 3.2).

    >>> sureness(3), sureness(5)
    (0.75, 0.9375)
    """
    return float(1 - 2.0 ** (1 - rounds))


def t_quantile(freedom: float) -> float:
    """Two-sided Student quantile at the 95 % level."""
    from scipy.stats import t

    return float(t.ppf(0.5 + CONFIDENCE / 2, freedom))


@contextmanager
def _equal_values() -> Iterator[None]:
    """No warning from SciPy where all values are equal up to rounding; the interval then has no width."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def paired(over: Mapping[int, float], under: Mapping[int, float]) -> Ratio | None:
    """Geometric mean of over/under by round, with Student's interval of the log ratios; None without a pair.

    A round with a time of 0, in which nothing was measured, is left out.
    """
    from scipy.stats import ttest_rel

    rounds = [i for i in sorted(over.keys() & under.keys()) if over[i] and under[i]]
    if not rounds:
        return None
    a, b = _logs(over[i] for i in rounds), _logs(under[i] for i in rounds)
    mean = fmean(a) - fmean(b)
    if len(rounds) < LEAST_ROUNDS:
        return Ratio(math.exp(mean), None, None, len(rounds))
    with _equal_values():
        return _ratio(mean, ttest_rel(a, b).confidence_interval(CONFIDENCE), len(rounds))


def unpaired(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """Ratio of the geometric means of two series of one day, with Welch's interval on logarithms."""
    from scipy.stats import ttest_ind

    a, b = _logs(over), _logs(under)
    mean, pairs = fmean(a) - fmean(b), min(len(a), len(b))
    if pairs < LEAST_ROUNDS:
        return Ratio(math.exp(mean), None, None, pairs)
    if len({*a}) == len({*b}) == 1:  # Welch's degrees of freedom are 0 / 0
        return Ratio(math.exp(mean), math.exp(mean), math.exp(mean), pairs)
    with _equal_values():
        return _ratio(mean, ttest_ind(a, b, equal_var=False).confidence_interval(CONFIDENCE), pairs)


def _logs(values: Iterable[float]) -> list[float]:
    return [math.log(x) for x in values]


def exp(log: float) -> float:
    """e to a power, limited to the range of a float: the interval of two very different rounds may have any bounds."""
    return math.exp(min(log, 700.0))


def _ratio(mean: float, interval: Any, pairs: int) -> Ratio:
    return Ratio(exp(mean), exp(interval.low), exp(interval.high), pairs)


@dataclass(frozen=True)
class PowerLaw:
    """cost(n) = fixed + rate * n ** exponent."""

    fixed: float
    rate: float
    exponent: float

    def at(self, size: float) -> float:
        """The cost at a size."""
        return self.fixed + self.rate * float(size**self.exponent)


def grow(series: Series) -> PowerLaw:
    """Fit `PowerLaw` to the medians by least squares of relative errors; no term is negative.

    The exponent needs three sizes; with two it is assumed to be 1. Raises ValueError with one.
    """
    from scipy.optimize import minimize_scalar

    sizes = sorted(series)
    costs = [median(series[n]) for n in sizes]
    if len(sizes) < 2:
        raise ValueError("growth needs at least two sizes")
    if len(sizes) == 2:
        return _at_exponent(sizes, costs, 1.0)[0]
    best = minimize_scalar(lambda c: _at_exponent(sizes, costs, c)[1], bounds=EXPONENTS, method="bounded")
    return _at_exponent(sizes, costs, float(best.x))[0]


def _at_exponent(sizes: Sequence[float], costs: Sequence[float], exponent: float) -> tuple[PowerLaw, float]:
    """The best law of one exponent and its residual, by Lawson and Hanson's non-negative least squares."""
    from scipy.optimize import nnls

    largest = max(sizes)  # sizes are divided by it, so that powers stay near 1
    rows = [[1 / y, (n / largest) ** exponent / y] for n, y in zip(sizes, costs, strict=True)]
    (fixed, rate), residual = nnls(rows, [1.0] * len(rows))
    return PowerLaw(float(fixed), float(rate) / largest**exponent, exponent), float(residual)


@dataclass(frozen=True)
class Check:
    """The cost at the largest measured size, predicted from the smaller ones."""

    size: float
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative error of the prediction: 0.1 = 10 % too high."""
        return self.predicted / self.measured - 1


def check(series: Series) -> Check | None:
    """Predict the largest size from the others; None with fewer than three sizes."""
    *smaller, largest = sorted(series)
    if len(smaller) < 2:
        return None
    predicted = grow({n: series[n] for n in smaller}).at(largest)
    return Check(largest, predicted, median(series[largest]))


@dataclass(frozen=True)
class Projection:
    """A cost at some size with bounds of at least 95 % confidence. Without bounds, `needs` says what measurements are lacking."""

    size: float
    value: float
    low: float | None
    high: float | None
    needs: str = ""

    def verdict(self, limit: float | None) -> str:
        """`YES`, `NO` or `NEAR` for a limit, or the missing measurements for a verdict."""
        if limit is None:
            return YES
        if self.low is None or self.high is None:
            return f"needs {self.needs}"
        if self.high <= limit:
            return YES
        return NO if self.low > limit else NEAR


def project(series: Series, size: float) -> Projection:
    """The cost at `size`: by the best `PowerLaw`, with the bounds of `scaling.reach`; at a measured size, by its own runs."""
    if size in series:
        return _measured(series[size], size)
    value, lacking = grow(series).at(size), needs(series)
    if lacking:
        return Projection(size, value, None, None, lacking)
    low, high = scaling.reach(series, size)
    return Projection(size, value, min(value, low), max(value, high))


def _measured(costs: Sequence[float], size: float) -> Projection:
    from scipy.stats import ttest_1samp

    value = math.exp(fmean(_logs(costs)))
    if len(costs) < LEAST_ROUNDS:
        return Projection(size, value, None, None, f"{LEAST_ROUNDS} rounds")
    with _equal_values():
        interval = ttest_1samp(_logs(costs), 0.0).confidence_interval(CONFIDENCE)
    return Projection(size, value, exp(interval.low), exp(interval.high))


def needs(series: Series) -> str:
    """What the interval of a projection lacks: sizes, rounds, or nothing."""
    lacking = [f"{LEAST_SIZES} sizes"] if len(series) < LEAST_SIZES else []
    if sum(len(costs) - 1 for costs in series.values()) < LEAST_REPEATED:
        lacking.append(REPEATED)
    return " and ".join(lacking)


def crossing(slow: PowerLaw, fast: PowerLaw, low: float, high: float) -> float | None:
    """The size between `low` and `high` above which `fast` costs less than `slow`; None if there is none."""
    from scipy.optimize import brentq

    def gap(log_size: float) -> float:
        n = math.exp(log_size)
        return math.log(slow.at(n) / fast.at(n))

    a, b = math.log(low), math.log(high)
    if gap(a) >= 0 or gap(b) <= 0:
        return None
    root: Any = brentq(gap, a, b)  # a float, because full_output is false
    return math.exp(root)
