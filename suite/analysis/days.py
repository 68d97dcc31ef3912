"""Comparisons between days. Each day has an effect on all its runs, and more runs on that day do not average it out.

Other work on the machine, a reboot or another host of the same kind change from day to day. This is a second source of variance, in addition to the noise
within a day. An interval computed only from the runs of two days is too narrow, and more so with more runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from buzzer.suite.analysis.statistics import Ratio, exp, t_quantile

Days = Sequence[Sequence[float]]  # the values of a series, by day


@dataclass(frozen=True)
class Spread:
    """The differences between days: the variance of a day's mean log, caused by the days' effects and the runs' noise."""

    variance: float
    per_run: float  # mean of 1 / runs per day: the share of the runs' variance in `variance`
    freedom: int


def spread(series: Sequence[Days]) -> Spread | None:
    """Pooled over several series of logs, as mean square around each series' mean; None if none has two days.

    A day affects all series alike, so the degrees of freedom are at most those of the longest series.
    """
    several = [days for days in series if len(days) > 1]
    if not several:
        return None
    freedoms = [len(days) - 1 for days in several]
    squares = sum(_squares([fmean(day) for day in days]) for days in several)
    per_run = sum(f * _per_run(days) for f, days in zip(freedoms, several, strict=True))
    return Spread(squares / sum(freedoms), per_run / sum(freedoms), max(freedoms))


def _per_run(days: Days) -> float:
    return fmean(1 / len(day) for day in days)


def _squares(values: Sequence[float]) -> float:
    middle = fmean(values)
    return sum((x - middle) ** 2 for x in values)


def ratio(over: Days, under: Days, others: Sequence[Days] = ()) -> Ratio:
    """Ratio of the geometric means over days of two series, with an interval that includes the effects of days.

    Variance components: the spread of days is estimated from both series, or from `others` if those have more days, and
    is corrected for unequal numbers of runs by the variance within days; degrees of freedom by Satterthwaite (1946). With the
    same number of runs every day it is Student's t-test of the days' means. The bounds are None if no series has two days.
    """
    a, b, *rest = ([[math.log(x) for x in day] for day in days] for days in (over, under, *others))
    log = fmean(map(fmean, a)) - fmean(map(fmean, b))
    unbounded = Ratio(math.exp(log), None, None, min(len(a), len(b)))
    repeats = sum(len(day) - 1 for day in chain(a, b))
    both = spread([a, b])
    spreads = [Spread(both.variance, both.per_run, len(a) + len(b) - 2)] if both else []
    spreads += [s for s in [spread(rest)] if s and repeats]
    if not spreads:
        return unbounded
    best = max(spreads, key=lambda s: s.freedom)
    weight = 1 / len(a) + 1 / len(b)
    lacking = _per_run(a) / len(a) + _per_run(b) / len(b) - weight * best.per_run
    within = sum(_squares(day) for day in chain(a, b)) / max(repeats, 1)
    parts = (weight * best.variance, best.freedom), (max(lacking, 0.0) * within, max(repeats, 1))
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / f for part, f in parts) if variance else 1.0
    half = t_quantile(freedom) * math.sqrt(variance)
    return Ratio(unbounded.value, exp(log - half), exp(log + half), unbounded.pairs)
