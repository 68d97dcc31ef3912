"""The rank table of `buzzer bench`, from its records."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from buzzer.suite import registry
from buzzer.suite.analysis import percentiles
from buzzer.suite.bench import loadgen
from buzzer.suite.bench.plan import REFERENCE
from buzzer.suite.records import comparable
from buzzer.suite.records.record import Record

COLUMNS = (
    "#",
    "backend",
    "precision",
    "p50 ms",
    "98 % interval",
    "p90",
    "p99",
    "cold p50",
    "cold device ms",
    "p99/mean",
    "x fp32",
    "rows/s",
    "of floor",
    "cosine",
    "compile s",
    "runs",
    "outcome",
)


@dataclass(frozen=True)
class BenchGroup:
    """One backend in one precision, all its rounds pooled."""

    records: tuple[Record, ...]

    @property
    def first(self) -> Record:
        return self.records[0]

    @property
    def ranked(self) -> bool:
        """Whether it counts: every round right, and VALID where LoadGen ran it."""
        right = all(r.outcome == "ok" and r.gate.status == "passed" for r in self.records)
        return right and all(
            loadgen.valid(r.bench.loadgen) for r in self.records if r.bench and r.bench.scenario
        )

    @property
    def outcome(self) -> str:
        worst = next((r for r in self.records if r.outcome != "ok"), self.first)
        if worst.outcome == "ok" and worst.bench and worst.bench.scenario:
            return "ok" if self.ranked else "LoadGen: INVALID"
        return worst.outcome if not worst.message else f"{worst.outcome}: {worst.message}"

    def pooled(self, name: str) -> list[float]:
        return [s for r in self.records for s in r.samples.get(name, [])]

    @property
    def rows_s(self) -> float | None:
        """Rows a second of run time."""
        spent = sum(self.pooled("warm_run"))
        done = sum(r.bench.rows for r in self.records if r.bench)
        return done / spent if spent else None

    @property
    def cold_device_s(self) -> float | None:
        """Mean device time of a cold run; None where there is no device."""
        found = self.pooled("cold_run_device")
        return fmean(found) if found else None

    @property
    def row_s(self) -> float:
        """Seconds of a row, by which rows are ranked: by LoadGen's own figure where it kept the clock; else by the mean device time of
        cold runs where there is a device, by the median run for equal batches, and by all warm runs for others."""
        records = [r for r in self.records if r.bench]
        if verdicts := [r.bench for r in records if r.bench and r.bench.scenario]:
            return max(loadgen.row_s(b.loadgen, b.scenario) for b in verdicts)
        real = any(r.bench and r.bench.lengths == "real" for r in records)
        if cold := self.pooled("cold_run_device"):
            done = sum(r.rows - (r.bench.rows if r.bench else 0) for r in records)
            return sum(cold) / done if done > 0 else math.inf
        if real and self.rows_s:
            return 1 / self.rows_s
        warm = self.pooled("warm_run")
        return median(warm) / self.first.config["batch"] if warm else math.inf

    @property
    def order(self) -> tuple[bool, float]:
        """Ranked first, then the fastest."""
        return not self.ranked, self.row_s

    def cells(self, rank: str, base: "BenchGroup | None") -> tuple[str, ...]:
        r, warm = self.first, self.pooled("warm_run")
        half, floor = percentiles.quantile(warm, 0.5), r.bench.floor_s if r.bench else None
        cosines = [x.scores["cosine"] for x in self.records if "cosine" in x.scores]
        against = self.cold_device_s or (half.value if half else None)
        compile_s = [p.wall_s for x in self.records for p in x.phases if p.name == "compile"]
        return (
            rank,
            r.backend,
            f"{r.precision} {r.bench.packing}" if r.bench and r.bench.lengths == "real" else r.precision,
            ms(half),
            ""
            if half is None or half.low is None or half.high is None
            else f"{1e3 * half.low:.2f}-{1e3 * half.high:.2f}",
            ms(percentiles.quantile(warm, 0.9)),
            ms(percentiles.quantile(warm, 0.99)),
            ms(percentiles.quantile(self.pooled("cold_run"), 0.5)),
            "" if self.cold_device_s is None else f"{1e3 * self.cold_device_s:.3f}",
            spread(self.pooled("cold_run_device")),
            speed_up(self, base),
            "" if self.rows_s is None else f"{self.rows_s:,.0f}",
            "" if floor is None or against is None else f"{100 * floor / against:.0f} %",
            f"{min(cosines):.5f}" if cosines else "",
            f"{max(compile_s):.1f}" if compile_s else "",
            str(len(warm)) if warm else "",
            self.outcome,
        )


def ms(found: percentiles.Quantile | None) -> str:
    """Milliseconds; empty where the percentile was refused."""
    return "" if found is None else f"{1e3 * found.value:.2f}"


def spread(samples: Sequence[float]) -> str:
    """The 99th percentile as a share of the mean; empty where the percentile was refused."""
    high = percentiles.quantile(samples, 0.99)
    return "" if high is None else f"{high.value / fmean(samples):.3f}"


def speed_up(row: BenchGroup, base: BenchGroup | None) -> str:
    """How many times faster than torch eager in FP32: the least and the most of the rounds."""
    if base is None or not row.ranked:
        return ""
    theirs = {r.repeat: rate(r) for r in base.records}
    ratios = [rate(r) / theirs[r.repeat] for r in row.records if theirs.get(r.repeat)]
    if not ratios:
        return ""
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return low if low == high else f"{low}-{high}"


def rate(record: Record) -> float:
    """Rows a second: by the median run where all runs are of one size, else over all of them."""
    samples = record.samples.get("warm_run", [])
    if not samples or record.bench is None:
        return 0.0
    if record.bench.lengths == "real":
        return record.bench.rows / sum(samples)
    return record.bench.batch / median(samples)


def rows(records: Iterable[Record]) -> list[BenchGroup]:
    """Best first. The newest run of each round counts."""
    newest: dict[tuple[str, ...], dict[int, Record]] = defaultdict(dict)
    for r in sorted(records, key=lambda r: r.created):
        packing = r.bench.packing if r.bench else ""
        newest[(r.backend, r.precision, r.device, packing)][r.repeat] = r
    return sorted(
        (BenchGroup(tuple(v for _, v in sorted(group.items()))) for group in newest.values()),
        key=lambda r: r.order,
    )


def is_base(row: BenchGroup) -> bool:
    """Whether others are compared with this row: the model's first backend (torch eager, XGBoost) in FP32, padded."""
    r = row.first
    plain = r.bench is not None and r.bench.packing == "padded"
    known = None if "model_hash" in r.config else registry.models().get(r.task)
    first = known.backends[0] if known else REFERENCE
    return row.ranked and plain and (r.backend, r.precision) == (first, "fp32")


def table(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """The cells of one model's table, a tuple a line."""
    found = rows(records)
    base = next((row for row in found if is_base(row)), None)
    return [row.cells(str(i) if row.ranked else "", base) for i, row in enumerate(found, 1)]


def boards(records: Iterable[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """Bench records by what makes them comparable (suite/records/comparable.py)."""
    found: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for r in records:
        if r.job == "bench":
            found[comparable.bench(r)].append(r)
    return dict(sorted(found.items()))


def title(record: Record) -> str:
    """`bert-base, batch 1, 128 tokens`; a path's model with the hash of its contents; the device where it is not the CPU."""
    c = record.config
    kind = ", real sentence lengths" if c["lengths"] == "real" else f", {c['seq']} tokens" if c["seq"] else ""
    scenario = f", MLPerf {c['scenario']}" if c["scenario"] else ""
    device = "" if record.device == "cpu" else f", on {record.device}"
    model = f"{record.task} ({c['model_hash']})" if "model_hash" in c else record.task
    return f"{model}, batch {c['batch']:,}{kind}{scenario}{device}"


def fastest(records: Iterable[Record]) -> list[str]:
    """Where several batches were timed: the fastest of each, so that one sees where another overtakes it."""
    lines = []
    for group in boards(records).values():
        best = next((row for row in rows(group) if row.ranked), None)
        if best is not None and not best.first.config["scenario"]:  # LoadGen has its own figures
            told = f"{best.first.backend} {best.first.precision}, {1e6 * best.row_s:,.2f} us a row"
            lines.append(f"{title(best.first)}: {told}")
    return lines if len(lines) > 1 else []
