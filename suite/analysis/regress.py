"""Regressions: compares new runs with older records of the same variant, data, parameters and machine.

Records of one day are compared run by run, records of different days by the means of days (`days.py`). The latter needs older records of several
days, which show how far days differ.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from statistics import median

from buzzer.errors import UsageError, unknown_name
from buzzer.suite.analysis import days, statistics
from buzzer.suite.analysis.comparison import REST, Group, Variant, noise
from buzzer.suite.analysis.statistics import LEAST_ROUNDS, Ratio
from buzzer.suite.records import comparable
from buzzer.suite.records.repetitions import RunGroup, phase_s
from buzzer.suite.records.schema import Record

LEAST_DAYS = 2


@dataclass(frozen=True)
class Threshold:
    """A threshold such as `wall:5%`: the share by which a figure may exceed its value in older records."""

    figure: str
    share: float

    @classmethod
    def parse(cls, text: str) -> "Threshold":
        """The threshold that a text of the form FIGURE:PERCENT names. Raises UsageError."""
        name, colon, value = text.partition(":")
        try:
            share = float(value.removesuffix("%")) / 100
        except ValueError:
            share = -1.0
        if not colon or not value.endswith("%") or not 0 <= share < math.inf:
            raise UsageError(
                f"--fail-if {text!r} is not of the form FIGURE:PERCENT", "write it like wall:5% or peak:10%"
            )
        if name not in FIGURES and not name.startswith("phase."):
            raise unknown_name("figure", name, [*FIGURES, "phase.NAME"])
        return cls(name, share)


FIGURES: dict[str, Callable[[Record], float | None]] = {
    "wall": lambda r: r.wall_s,
    "cpu": lambda r: r.cpu_s,
    "peak": lambda r: r.peak_memory_bytes,
    "gpu_peak": lambda r: r.gpu_peak_memory_bytes,
    "energy": lambda r: sum(r.energy_j.values()) if r.energy_j else None,
}


def figure(r: Record, name: str) -> float | None:
    """A figure of a record by its name in thresholds: wall, cpu, peak, ..., phase.predict; None if it is 0 or unknown."""
    if name.startswith("phase."):
        return phase_s(r, name.removeprefix("phase.")) or None
    value = FIGURES[name](r)
    return float(value) if value else None


@dataclass(frozen=True)
class Change:
    """A figure of new runs compared with older records."""

    scale: float
    variant: Variant
    figure: str
    before: float
    after: float
    ratio: Ratio
    days: int  # number of days of the older and newer runs
    noise: bool | None
    failed: bool
    needs: str  # the missing measurements for a verdict; without a verdict nothing fails
    differ: tuple[str, ...] = ()  # other differences between the records: commit, versions, system


@dataclass(frozen=True)
class Failure:
    """A variant that ended ok in older records and does not any more."""

    scale: float
    variant: Variant
    outcome: str


def failures(group: Group, older: Iterable[Record]) -> list[Failure]:
    """The variants of which a run did not end ok, though older ones with the same data, parameters and machine did."""
    past = {(comparable.times(r), Variant.of(r)) for r in older if r.outcome == "ok"}
    return [
        Failure(scale, variant, cell.outcome)
        for scale, row in group.cells.items()
        for variant, cell in row.items()
        if cell.failed and (comparable.times(cell.first), variant) in past
    ]


def check_phases(thresholds: Iterable[Threshold], records: Iterable[Record]) -> None:
    """Raises UsageError for a threshold of a phase that no record has."""
    known = {f"phase.{phase.name}" for r in records for phase in r.phases}
    for threshold in thresholds:
        if threshold.figure.startswith("phase.") and threshold.figure not in known:
            raise unknown_name("phase", threshold.figure, known)


def changes(
    group: Group, older: Iterable[Record], thresholds: Sequence[Threshold], pool: Sequence[Record]
) -> list[Change]:
    """Every variant whose runs ended ok, compared with its older records of the same machine, data, parameters, enforcement and rule of timing.

    A change within the noise never fails. pool: records that may contain A/A pairs and show how days differ.
    """
    older = list(older)
    past, other = _by_self(older), _others(group, [*older, *pool])
    result = []
    for scale, row in group.cells.items():
        for variant, cell in row.items():
            before = past.get(_self(cell.first), [])
            for threshold in thresholds if before and not cell.failed else []:
                change = _change(scale, variant, cell, before, threshold, pool, other)
                result += [change] if change is not None else []
    return result


def _by_self(records: Iterable[Record]) -> dict[comparable.Key, list[Record]]:
    by_self: dict[comparable.Key, list[Record]] = defaultdict(list)
    for r in records:
        if r.outcome == "ok" and not r.control:
            by_self[_self(r)].append(r)
    return by_self


def _others(group: Group, records: Iterable[Record]) -> list[list[Record]]:
    """Other runs on the machine of `group`, by variant and data: they show how far days differ."""
    facts, new = comparable.noise(group.first), {r.run_id for r in group.records}
    older = {r.run_id: r for r in records if r.job == "predict" and r.run_id not in new}
    here = [r for r in older.values() if comparable.noise(r) == facts]
    return list(_by_self(here).values())


def _self(r: Record) -> comparable.Key:
    """The facts that a record has in common with older records of the same variant."""
    return (comparable.close_times(r), Variant.of(r))


def _change(
    scale: float,
    variant: Variant,
    cell: RunGroup,
    past: Sequence[Record],
    threshold: Threshold,
    pool: Sequence[Record],
    other: Sequence[Sequence[Record]],
) -> Change | None:
    value = partial(figure, name=threshold.figure)
    after, before = _values(by_day(cell.records), value), _values(by_day(past), value)
    if not after or not before:
        return None
    flat = list(chain(*after)), list(chain(*before))
    count = len(by_day([*cell.records, *past]))
    if count == 1:
        ratio = statistics.unpaired(*flat)
    else:
        used = {r.run_id for r in past}
        rest = [[r for r in runs if r.run_id not in used] for runs in other]
        ratio = days.ratio(after, before, [_values(by_day(runs), value) for runs in rest])
    needs = _needs(len(flat[0]), ratio, count)
    aa = noise(pool, cell.first, min(len(values) for values in flat), value)
    is_noise = None if needs else ratio.is_noise(aa.band if aa else None)
    failed = ratio.value > 1 + threshold.share and is_noise is False
    middle = median(flat[1]), median(flat[0])
    differ = tuple(comparable.differences([*past, *cell.records]))
    return Change(scale, variant, threshold.figure, *middle, ratio, count, is_noise, failed, needs, differ)


def _needs(rounds: int, ratio: Ratio, count: int) -> str:
    if rounds < LEAST_ROUNDS:
        return f"{LEAST_ROUNDS} rounds"
    if ratio.low is not None:
        return ""
    return f"{LEAST_ROUNDS} older rounds" if count == 1 else f"older records of {LEAST_DAYS} days or of today"


def by_day(records: Iterable[Record]) -> list[list[Record]]:
    """Records in order of time; a new day begins after `REST` without a run."""
    groups: list[list[Record]] = []
    for r in sorted(records, key=lambda r: r.created):
        if not groups or r.created.timestamp() - r.wall_s - groups[-1][-1].created.timestamp() > REST:
            groups.append([])
        groups[-1].append(r)
    return groups


def _values(parts: Iterable[Iterable[Record]], value: Callable[[Record], float | None]) -> list[list[float]]:
    figures = [[v for r in part if (v := value(r)) is not None] for part in parts]
    return [values for values in figures if values]
