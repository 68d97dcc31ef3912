"""Percentiles against SciPy's binomial and against simulated coverage."""

from math import ceil

import numpy as np
import pytest

from buzzer.suite.analysis.percentiles import TAIL, Quantile, correlation_time, least_count, quantile, ranks


def test_ranks_are_scipys() -> None:
    binom = pytest.importorskip("scipy.stats").binom
    for n, q in ((7, 0.5), (44, 0.9), (100, 0.5), (459, 0.99), (2000, 0.99)):
        below = binom.cdf(np.arange(n), n, q)  # at most k samples below the quantile
        low, high = ranks(n, q)
        assert low == max(1, int((below <= TAIL).sum()))
        assert high == int(np.argmax(below >= 1 - TAIL)) + 1


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95, 0.99])
def test_a_percentile_is_refused_below_its_count(q: float) -> None:
    n = least_count(q)
    assert q**n <= TAIL < q ** (n - 1)
    assert quantile(list(range(n - 1)), q) is None
    trend = quantile(list(range(n)), q)  # each sample depends on the previous one
    assert trend == Quantile(ceil(q * n) - 1, None, None, n)
    assert ranks(n, q)[1] == n or q == 0.5
    result = quantile(list(np.random.default_rng(0).permutation(4 * n)), q)
    assert result is not None
    assert result.low is not None
    assert result.high is not None
    assert result.low < result.value < result.high


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    draws = rng.exponential(size=(2000, 500))
    truth = -np.log(1 - 0.9)
    ordered = np.sort(draws, axis=1)
    low, high = ranks(500, 0.9)
    inside = (ordered[:, low - 1] <= truth) & (truth <= ordered[:, high - 1])
    assert inside.mean() >= 1 - 2 * TAIL - 0.006  # two standard errors of 2000 trials


def test_values_by_hand() -> None:
    result = quantile([5.0, 1.0, 4.0, 2.0, 7.0, 3.0, 6.0], 0.5)
    assert result is not None
    assert (result.value, result.low, result.high, result.count) == (4.0, 1.0, 7.0, 7)


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_the_correlation_time_of_a_known_process(memory: float) -> None:
    """AR(1): (1 + memory) / (1 - memory)."""
    from scipy.signal import lfilter

    series = lfilter([1], [1, -memory], np.random.default_rng(1).normal(size=200_000))
    assert correlation_time(series) == pytest.approx((1 + memory) / (1 - memory), rel=0.1)
    assert correlation_time(np.ones(10)) == 1.0
