import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_ind, ttest_rel

from buzzer.suite.analysis import days, statistics
from buzzer.suite.analysis.statistics import PowerLaw, Projection, Ratio

WALLS = st.lists(st.floats(0.5, 2.0), min_size=3, max_size=8)


@given(WALLS, st.integers(0, 10**6))
def test_the_paired_interval_is_that_of_the_t_test(slow: list[float], seed: int) -> None:
    draw = random.Random(seed)
    fast = [x / 3 * draw.uniform(0.9, 1.1) for x in slow]
    ratio = statistics.paired(dict(enumerate(slow)), dict(enumerate(fast)))
    assert ratio is not None
    assert ratio.low is not None
    assert ratio.high is not None
    expected = ttest_rel([math.log(x) for x in slow], [math.log(x) for x in fast]).confidence_interval(0.95)
    assert (math.log(ratio.low), math.log(ratio.high)) == pytest.approx(
        (expected.low, expected.high), rel=1e-6, abs=1e-9
    )


def test_the_unpaired_interval_is_that_of_welch() -> None:
    a, b = [1.0, 1.1, 1.3, 0.9], [2.0, 2.4, 2.1]
    ratio = statistics.unpaired(a, b)
    logs = [[math.log(x) for x in xs] for xs in (a, b)]
    expected = ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert ratio.low is not None
    assert ratio.high is not None
    assert (math.log(ratio.low), math.log(ratio.high)) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("over", "under"), [([0.9, 1.2, 1.0], [1.1]), ([1.0, 1.1], [1.2, 0.8, 1.3, 1.0])])
def test_days_with_equal_numbers_of_runs_give_a_t_test_of_their_means(
    over: list[float], under: list[float]
) -> None:
    """Two runs a day, around the day's mean."""
    pairs = [[[x * 1.1, x / 1.1] for x in side] for side in (over, under)]
    ratio = days.ratio(*pairs)
    logs = [[math.log(x) for x in side] for side in (over, under)]
    expected = ttest_ind(*logs).confidence_interval(0.95)
    assert ratio.low is not None
    assert ratio.high is not None
    assert (math.log(ratio.low), math.log(ratio.high)) == pytest.approx((expected.low, expected.high))


def test_one_day_on_each_side_gives_no_interval() -> None:
    assert days.ratio([[2.0, 2.0]], [[1.0, 1.0]]) == Ratio(pytest.approx(2.0), None, None, 1)


def test_series_of_the_same_days_do_not_count_as_more_days() -> None:
    today, then, others = [[2.0, 2.1, 2.2]], [[1.0, 1.1, 0.9]], [[5.0], [5.5], [4.8]]
    assert days.ratio(today, then, [others] * 2) == days.ratio(today, then, [others])


def test_wild_rounds_do_not_overflow() -> None:
    wild = {0: 1e-150, 1: 1e150, 2: 1.0}
    ratio = statistics.paired(wild, dict.fromkeys(wild, 1.0))
    assert ratio is not None
    assert ratio.high is not None
    assert math.isfinite(ratio.high)
    projection = statistics.project({n: [1.0, 1e-9, 1e9] for n in (1.0, 2.0, 3.0)}, 10.0)
    assert projection.high is not None
    assert math.isfinite(projection.high)


def test_equal_runs_have_an_interval_of_no_width() -> None:
    same = dict.fromkeys(range(3), 2.0)
    for ratio in (
        statistics.paired(same, dict.fromkeys(range(3), 1.0)),
        statistics.unpaired([2.0] * 3, [1.0] * 3),
        days.ratio([[2.0] * 3], [[1.0] * 3] * 3),
    ):
        assert ratio is not None
        assert (ratio.low, ratio.value, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


def test_only_rounds_that_both_have_are_paired() -> None:
    ratio = statistics.paired({0: 2.0, 1: 4.0, 7: 100.0}, {0: 1.0, 1: 2.0, 5: 0.1})
    assert ratio is not None
    assert (ratio.value, ratio.pairs) == (pytest.approx(2.0), 2)
    assert statistics.paired({0: 1.0}, {1: 1.0}) is None
    assert statistics.paired({0: 3.0}, {0: 1.0}) == Ratio(pytest.approx(3.0), None, None, 1)


@pytest.mark.parametrize(
    ("ratio", "band", "noise"),
    [
        (Ratio(1.05, 0.98, 1.12, 5), 0.0, True),  # the interval holds 1
        (Ratio(1.05, 1.03, 1.07, 5), 0.0, False),
        (Ratio(1.05, 1.03, 1.07, 5), 0.06, True),  # within the differences of A/A runs
        (Ratio(1.05, None, None, 1), 0.06, True),
        (Ratio(0.9, None, None, 1), 0.06, False),
        (Ratio(1.05, 0.98, 1.12, 5), None, True),
        (Ratio(1.05, 1.03, 1.07, 5), None, False),
        (Ratio(9.0, None, None, 1), None, None),  # one pair gives no verdict
    ],
)
def test_noise(ratio: Ratio, band: float | None, noise: bool | None) -> None:
    assert ratio.is_noise(band) is noise


@settings(max_examples=30)
@given(st.floats(0.1, 5), st.floats(1, 100), st.floats(0.6, 1.6))
def test_growth_is_recovered(fixed: float, rate: float, exponent: float) -> None:
    true = PowerLaw(fixed, rate, exponent)
    series = {n: [true.at(n)] for n in (0.01, 0.03, 0.1, 0.3, 1.0)}
    law = statistics.grow(series)
    for size in (0.02, 0.5, 2.0):
        assert law.at(size) == pytest.approx(true.at(size), rel=0.05)


def test_two_sizes_are_taken_to_be_linear() -> None:
    law = statistics.grow({1.0: [3.0], 2.0: [5.0]})
    assert (law.fixed, law.rate, law.exponent) == pytest.approx((1.0, 2.0, 1.0))
    with pytest.raises(ValueError, match="two sizes"):
        statistics.grow({1.0: [3.0]})


def test_a_projection_is_checked_by_the_largest_size() -> None:
    draw, true = random.Random(0), PowerLaw(0.5, 40.0, 1.0)
    series = {
        n: [true.at(n) * draw.lognormvariate(0, 0.02) for _ in range(5)] for n in (0.01, 0.02, 0.05, 0.1)
    }
    check = statistics.check(series)
    assert check is not None
    assert check.size == 0.1
    assert abs(check.error) < 0.1
    projection = statistics.project(series, 1.0)
    assert projection.low is not None
    assert projection.high is not None
    assert projection.low < true.at(1.0) < projection.high
    assert projection.low < 0.6 * true.at(1.0)  # growth may halve or double beyond the largest size
    assert 1.8 * true.at(1.0) < projection.high < 3 * true.at(1.0)
    assert statistics.check({n: series[n] for n in (0.01, 0.02)}) is None


def test_a_measured_size_is_not_projected() -> None:
    """Student's interval of its own runs, whatever the other sizes say."""
    walls = [9.0, 10.0, 12.0]
    projection = statistics.project({0.1: [5.0], 1.0: walls}, 1.0)
    expected = ttest_1samp([math.log(x) for x in walls], 0).confidence_interval(0.95)
    assert projection.low is not None
    assert projection.high is not None
    assert (math.log(projection.low), math.log(projection.high)) == pytest.approx(
        (expected.low, expected.high)
    )
    assert projection.value == pytest.approx((9 * 10 * 12) ** (1 / 3))
    assert statistics.project({0.1: [5.0], 1.0: [10.0]}, 1.0).needs == "3 rounds"


@pytest.mark.parametrize(
    ("limit", "verdict"), [(None, "yes"), (13.0, "yes"), (10.0, "too near to tell"), (7.0, "no")]
)
def test_a_verdict_needs_the_whole_interval(limit: float | None, verdict: str) -> None:
    assert Projection(1.0, 10.0, 8.0, 12.0).verdict(limit) == verdict


def test_break_even_is_where_the_costs_cross() -> None:
    cpu, gpu = PowerLaw(1.0, 100.0, 1.0), PowerLaw(5.0, 2.0, 1.0)
    assert statistics.crossing(cpu, gpu, 1e-4, 10.0) == pytest.approx(4 / 98)
    assert statistics.crossing(gpu, cpu, 1e-4, 10.0) is None
    assert statistics.crossing(cpu, gpu, 1.0, 10.0) is None  # already faster
