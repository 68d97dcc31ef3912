"""Groups bench records: one group has all rounds of one backend and precision. Groups are ranked by the time per row."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from buzzer.suite import registry
from buzzer.suite.bench import loadgen
from buzzer.suite.bench.plan import REFERENCE
from buzzer.suite.records import comparable
from buzzer.suite.records.repetitions import Repetitions
from buzzer.suite.records.schema import Record


@dataclass(frozen=True)
class BenchGroup(Repetitions):
    """All rounds of one backend in one precision. Their samples are pooled."""

    @property
    def ranked(self) -> bool:
        """Whether every round passed its gate and, under LoadGen, was VALID."""
        passed = all(r.outcome == "ok" and r.gate.status == "passed" for r in self.records)
        return passed and all(
            loadgen.valid(r.bench.loadgen) for r in self.records if r.bench and r.bench.scenario
        )

    @property
    def outcome(self) -> str:
        """The worst outcome with its message; LoadGen's verdict if all runs are ok but INVALID."""
        worst = self.worst
        if worst.outcome == "ok" and worst.bench and worst.bench.scenario:
            return "ok" if self.ranked else "LoadGen: INVALID"
        return worst.outcome if not worst.message else f"{worst.outcome}: {worst.message}"

    @property
    def rows_s(self) -> float | None:
        """Rows per second of run time; None without a warm run."""
        seconds = sum(self.samples("warm_run"))
        count = sum(r.bench.rows for r in self.records if r.bench)
        return count / seconds if seconds else None

    @property
    def cold_device_s(self) -> float | None:
        """Mean device time of a cold run in seconds; None on the CPU."""
        seconds = self.samples("cold_run_device")
        return fmean(seconds) if seconds else None

    @property
    def row_s(self) -> float:
        """Seconds per row, by which groups are ranked; infinite without a run.

        Under LoadGen, its own figure. On a GPU, the mean device time of the cold runs. On the CPU, the median warm run for rows of
        one length, and the mean over all warm runs for real lengths.
        """
        records = [r for r in self.records if r.bench]
        if verdicts := [r.bench for r in records if r.bench and r.bench.scenario]:
            return max(loadgen.row_s(b.loadgen, b.scenario) for b in verdicts)
        if cold := self.samples("cold_run_device"):
            count = sum(r.rows - (r.bench.rows if r.bench else 0) for r in records)
            return sum(cold) / count if count > 0 else math.inf
        if self.rows_s and any(r.bench and r.bench.lengths == "real" for r in records):
            return 1 / self.rows_s
        warm = self.samples("warm_run")
        return median(warm) / self.first.config["batch"] if warm else math.inf

    def speed_ups(self, base: "BenchGroup") -> list[float]:
        """How many times faster this group is than `base`, for each round that both have."""
        theirs = {r.repeat: rate(r) for r in base.records}
        return [rate(r) / theirs[r.repeat] for r in self.records if theirs.get(r.repeat)]

    @property
    def is_base(self) -> bool:
        """Whether other groups are compared with this one: the model's first backend (torch eager, XGBoost) in FP32, padded."""
        r = self.first
        padded = r.bench is not None and r.bench.packing == "padded"
        return self.ranked and padded and (r.backend, r.precision) == (base_backend(r), "fp32")


def base_backend(record: Record) -> str:
    """The first backend of a record's model."""
    values = map(str, record.config.get("model", {}).values())
    if path := next((value for value in values if Path(value).is_absolute()), None):
        return registry.backends_of_path(path)[0]
    model = registry.models().get(record.task)
    return model.backends[0] if model else REFERENCE


def rate(record: Record) -> float:
    """Rows per second: of the median run if all runs have one size, else over all runs; 0 without a run."""
    samples = record.samples.get("warm_run", [])
    if not samples or record.bench is None:
        return 0.0
    if record.bench.lengths == "real":
        return record.bench.rows / sum(samples)
    return record.bench.batch / median(samples)


def rows(records: Iterable[Record]) -> list[BenchGroup]:
    """Groups of records by backend, precision, device and packing: ranked ones first, the fastest first. Of each round the newest run counts."""
    newest: dict[tuple[str, ...], dict[int, Record]] = defaultdict(dict)
    for r in sorted(records, key=lambda r: r.created):
        packing = r.bench.packing if r.bench else ""
        newest[(r.backend, r.precision, r.device, packing)][r.repeat] = r
    groups = [BenchGroup(tuple(r for _, r in sorted(rounds.items()))) for rounds in newest.values()]
    return sorted(groups, key=lambda group: (not group.ranked, group.row_s))


def boards(records: Iterable[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """Bench records by table: one table has records that may be compared (suite/records/comparable.py)."""
    by_key: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for r in records:
        if r.job == "bench":
            by_key[comparable.bench(r)].append(r)
    return dict(sorted(by_key.items()))
