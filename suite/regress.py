"""Regressions: a comparison's runs against older records of the same variant, data, parameters and machine."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from buzzer.errors import UsageError, unknown_name
from buzzer.suite import comparable, estimate
from buzzer.suite.compare import Group, Variant, noise
from buzzer.suite.estimate import Ratio
from buzzer.suite.record import Record
from buzzer.suite.report import Row


@dataclass(frozen=True)
class Threshold:
    """`wall:5%`: how much larger a figure may be than in the older record."""

    figure: str
    share: float

    @classmethod
    def parse(cls, text: str) -> "Threshold":
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
    """A figure of a record by the name used in thresholds: wall, cpu, peak, ..., phase.predict."""
    if name.startswith("phase."):
        spent = [p.wall_s for p in r.phases if p.name == name.removeprefix("phase.")]
        return sum(spent) or None
    value = FIGURES[name](r)
    return float(value) if value else None


@dataclass(frozen=True)
class Change:
    """A figure now against the same figure in older records."""

    scale: float
    variant: Variant
    figure: str
    before: float
    after: float
    ratio: Ratio
    noise: bool
    failed: bool
    differ: tuple[str, ...] = ()  # what else is not the same: commit, versions, system


def changes(
    group: Group, older: Iterable[Record], thresholds: Sequence[Threshold], pool: Sequence[Record]
) -> list[Change]:
    """Every variant against its older self: same machine, data, parameters, enforcement and rule of timing. A change within noise never fails."""
    past: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for r in older:
        if r.outcome == "ok" and not r.control:
            past[_self(r)].append(r)
    found = []
    for scale, row in group.cells.items():
        for variant, cell in row.items():
            before = past.get(_self(cell.first), [])
            for threshold in thresholds if cell.ranked and before else []:
                change = _change(scale, variant, cell, before, threshold, pool)
                found += [change] if change is not None else []
    return found


def _self(r: Record) -> tuple[Any, ...]:
    return (comparable.near(r), Variant.of(r))


def _change(
    scale: float,
    variant: Variant,
    cell: Row,
    past: Sequence[Record],
    threshold: Threshold,
    pool: Sequence[Record],
) -> Change | None:
    after = [v for r in cell.records if (v := figure(r, threshold.figure)) is not None]
    before = [v for r in past if (v := figure(r, threshold.figure)) is not None]
    if not after or not before:
        return None
    ratio = estimate.unpaired(after, before)
    aa = noise(pool, cell.first, min(len(after), len(before)))
    quiet = ratio.is_noise(0.0 if aa is None else aa.band)
    failed = ratio.value > 1 + threshold.share and not quiet
    middle = median(before), median(after)
    differ = tuple(comparable.told([*past, *cell.records]))
    return Change(scale, variant, threshold.figure, *middle, ratio, quiet, failed, differ)
