"""Intervals compared with simulation: how often they contain the true value, and how often runs of the same speed are called different.

Seeds are fixed. `BUZZER_SIMULATIONS=2000 pytest -s` on this file simulates more sets per case and prints a table.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from buzzer.suite.analysis import days, percentiles, scaling, statistics
from buzzer.suite.analysis.statistics import Ratio

SETS = int(os.environ.get("BUZZER_SIMULATIONS", "0"))
NOISE = 0.02  # standard deviation of the log wall time within a day
LAWS: dict[str, Callable[[float], float]] = {
    "fixed + n": lambda n: 1 + 100 * n,
    "n log n": lambda n: 10 * n * math.log2(1e6 * n),
    "n^1.3": lambda n: 100 * n**1.3,
    "n^0.8": lambda n: 100 * n**0.8,
    "n + n^2": lambda n: 100 * (n + n**2),
    "n + 5 n^2": lambda n: 100 * (n + 5 * n**2),
    "knee at 0.1": lambda n: 1 + 100 * (n + max(n - 0.1, 0)),
    "knee at 0.05": lambda n: 1 + 100 * (n + max(n - 0.05, 0)),
}
SIZES = {
    2: (0.01, 0.1),
    3: (0.01, 0.03, 0.1),
    4: (0.01, 0.02, 0.05, 0.1),
    5: (0.005, 0.01, 0.02, 0.05, 0.1),
}


def sets(few: int) -> int:
    return SETS or few


def share(outcomes: Iterable[bool], *case: object) -> float:
    """The share of true outcomes, which is also printed with the case."""
    values = list(outcomes)
    print(*case, f"{np.mean(values):.3f} of {len(values)}", sep=" | ")
    return float(np.mean(values))


def holds(low: float | None, high: float | None, truth: float) -> bool:
    assert low is not None
    assert high is not None
    return low <= truth <= high


def error(count: int, level: float = 0.95) -> float:
    """Three standard errors of a coverage."""
    return 3 * math.sqrt(level * (1 - level) / count)


def runs(rng: np.random.Generator, count: int, day: float = 0.0) -> list[float]:
    """Wall times of one day, around 1."""
    return list(np.exp(rng.normal(rng.normal(0, day), NOISE, count)))


@pytest.mark.parametrize("rounds", [3, 5, 10])
def test_speed_ups_within_a_run(rounds: int) -> None:
    rng, count = np.random.default_rng(rounds), sets(500)
    results = []
    for _ in range(count):
        drift = np.exp(rng.normal(0, 0.1, rounds))  # hits both runs of a round
        walls = [dict(enumerate(drift * runs(rng, rounds))) for _ in range(2)]
        results.append(statistics.paired(*walls))
    coverage = share((holds(r.low, r.high, 1.0) for r in results if r), "paired", rounds, "rounds")
    assert coverage == pytest.approx(0.95, abs=error(count))
    false = share((r.is_noise(None) is False for r in results if r), "A/A different", rounds, "rounds")
    assert false <= 0.05 + error(count)


def compared(rng: np.random.Generator, effect: float, new: int, old: Sequence[int], others: int = 0) -> Ratio:
    """The ratio of `new` runs of today to runs of the same speed on earlier days, `old` per day. `others`: further series on the same days."""
    effects = rng.normal(0, effect, 6)
    history = [
        [list(np.exp(e + rng.normal(0, NOISE, 3))) for e in effects]  # six days of three runs
        for _ in range(others)
    ]
    before = [list(np.exp(e + rng.normal(0, NOISE, n))) for e, n in zip(effects, old, strict=False)]
    return days.ratio([runs(rng, new, effect)], before, history)


@pytest.mark.parametrize("effect", [0.0, 0.02, 0.03, 0.05])
@pytest.mark.parametrize(
    ("new", "old", "others"),
    [
        (1, (1, 1, 1), 0),
        (3, (3, 3), 0),
        (3, (3, 3, 3), 0),
        (5, (5,) * 5, 0),
        (10, (10,) * 3, 0),
        (2, (10,) * 5, 0),  # fewer runs today than on earlier days
        (10, (2,) * 5, 0),
        (5, (5,), 4),  # one earlier day; the other series show how much days differ
        (3, (10,), 4),
    ],
)
def test_ratios_between_days(effect: float, new: int, old: tuple[int, ...], others: int) -> None:
    rng, count = np.random.default_rng(new), sets(150)
    results = [compared(rng, effect, new, old, others) for _ in range(count)]
    case = (f"day {effect:.0%}", f"{new} against {old}", f"{others} others")
    coverage = share((holds(r.low, r.high, 1.0) for r in results), "between days", *case)
    assert 0.95 - error(count) <= coverage
    if not others and len({new, *old}) == 1:  # Student's test of the days' means: exact
        assert coverage <= 0.95 + error(count)
    assert (
        share((r.is_noise(None) is False and r.value > 1.05 for r in results), "fails wall:5%", *case) <= 0.05
    )


@pytest.mark.parametrize("size", [1.0, 0.3])
@pytest.mark.parametrize(("sizes", "rounds"), [(3, 2), (3, 10), (4, 3), (5, 2), (5, 10)])
@pytest.mark.parametrize("law", LAWS)
def test_projections(law: str, sizes: int, rounds: int, size: float) -> None:
    rng, count = np.random.default_rng(1), sets(25)
    truth = LAWS[law](size)
    results = [scaling.reach(measured(rng, law, sizes, rounds), size) for _ in range(count)]
    width = np.median([high / low for low, high in results])
    coverage = share(
        (low <= truth <= high for low, high in results), law, sizes, rounds, size, f"width {width:.1f}"
    )
    assert coverage >= (0.95 - error(count) if SETS else 0.88)
    assert width < 12  # wide, but not meaningless


def measured(rng: np.random.Generator, law: str, sizes: int, rounds: int) -> dict[float, list[float]]:
    return {n: list(LAWS[law](n) * np.array(runs(rng, rounds))) for n in SIZES[sizes]}


@pytest.mark.parametrize(
    ("sizes", "rounds", "lacking"),
    [(2, 5, "3 sizes"), (5, 1, "2 rounds"), (2, 1, "3 sizes and 2 rounds")],
)
def test_projections_that_the_measurements_do_not_support(sizes: int, rounds: int, lacking: str) -> None:
    projection = statistics.project(measured(np.random.default_rng(0), "fixed + n", sizes, rounds), 1.0)
    assert (projection.low, projection.high, projection.needs) == (None, None, lacking)
    assert projection.value == pytest.approx(101, rel=0.2)
    for limit in (1.0, 1e6):
        assert projection.verdict(limit) == f"needs {lacking}"
    assert projection.verdict(None) == "yes"


def test_a_verdict_is_seldom_wrong_near_the_limit() -> None:
    """Limits within a factor of two of the truth, on either side."""
    rng, wrong = np.random.default_rng(2), []
    for law, at in LAWS.items():
        truth = at(1.0)
        for _ in range(sets(20)):
            projection = statistics.project(measured(rng, law, 4, 3), 1.0)
            limit = truth * 2 ** rng.uniform(-1, 1)
            wrong.append(projection.verdict(limit) == ("no" if truth <= limit else "yes"))
    assert share(wrong, "verdict wrong") <= 0.05


@pytest.mark.parametrize("rounds", [2, 5])
def test_the_exponent_of_a_power_law(rounds: int) -> None:
    rng, count = np.random.default_rng(rounds), sets(200)
    results = [scaling.exponent(measured(rng, "fixed + n", 4, rounds)) for _ in range(count)]
    assert share((low <= 1 <= high for low, high in results), "exponent", rounds) >= 0.95 - error(count)


@pytest.mark.parametrize("q", [0.5, 0.9])
@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("samples", [50, 500, 2000])
def test_percentiles_of_dependent_samples(q: float, memory: float, samples: int) -> None:
    """Normal AR(1) with the coefficient `memory`."""
    from scipy.signal import lfilter
    from scipy.stats import norm

    rng, count = np.random.default_rng(samples), sets(150)
    noise = rng.normal(size=(count, samples + 200)) * math.sqrt(1 - memory**2)
    quantiles = [percentiles.quantile(x, q) for x in lfilter([1], [1, -memory], noise)[:, 200:]]
    bounded = [x for x in quantiles if x is not None and x.low is not None]
    missed = [not holds(x.low, x.high, float(norm.ppf(q))) for x in bounded]
    share((x in bounded for x in quantiles), "percentile", q, "AR", memory, samples, "interval given")
    if len(bounded) > count / 2:
        assert share(missed, "percentile", q, "AR", memory, samples, "missed") <= 0.02 + error(count, 0.98)
    assert sum(missed) <= 0.04 * count
    assert len(bounded) == count or memory or samples == 50  # enough independent samples are never refused


def test_slow_runs_in_bursts_widen_the_interval() -> None:
    """6 % of 10,000 samples are slow, in bursts of 50. The 95th percentile then rests on 12 bursts, not on 600 samples."""
    rng, missed = np.random.default_rng(0), []
    for _ in range(sets(20)):
        slow = np.zeros(10_000)
        for start in rng.choice(200, 12, replace=False):
            slow[50 * start : 50 * start + 50] = 1.0
        bursts: Any = percentiles.quantile(list(slow + rng.random(10_000)), 0.95)
        independent: Any = percentiles.quantile(list(rng.permutation(slow) + rng.random(10_000)), 0.95)
        missed.append(
            bursts.low is None or bursts.high - bursts.low > 3 * (independent.high - independent.low)
        )
    assert share(missed, "bursts widen") > 0.95
