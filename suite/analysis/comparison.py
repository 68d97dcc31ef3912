"""Comparisons of records: the same job on several engines, backends, devices, budgets and sizes.

`compare` computes plain data from one group of comparable records. `suite/report/compare_text.py` shows them.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from buzzer.configs import load_yaml
from buzzer.errors import UsageError, unknown_name
from buzzer.suite.analysis import published_job, scaling, statistics
from buzzer.suite.analysis.published_job import Share
from buzzer.suite.analysis.statistics import PowerLaw, Projection, Ratio
from buzzer.suite.budget import Budget
from buzzer.suite.records import comparable, gate
from buzzer.suite.records.repetitions import RunGroup
from buzzer.suite.records.schema import Record, WorkFields
from buzzer.suite.registry import TaskConfig

REST = 8 * 3600  # seconds without a run after which a new day begins
REACH = 1000.0  # break-even sizes are searched up to this multiple of the largest measured size


@dataclass(frozen=True, order=True)
class Variant:
    """The compared properties of a run: everything except the data and the round."""

    engine: str
    backend: str
    precision: str
    device: str
    budget: str

    @classmethod
    def of(cls, r: Record) -> "Variant":
        """The variant of a record."""
        return cls(r.engine_name, r.backend, r.precision, r.device, r.budget.name)

    def __str__(self) -> str:
        parts = (self.engine, self.backend, self.precision, self.device, self.budget)
        return " ".join(p for p in parts if p not in ("none", "fp32"))


@dataclass
class Group:
    """Records that may be compared: they have the same task, machine, seed, parameters, data source and rule of timing."""

    records: list[Record]
    cells: dict[float, dict[Variant, RunGroup]] = field(default_factory=dict)  # scale -> variant -> rounds
    other_data: int = 0  # runs that are left out: they had other data than the newest of their scale

    def __post_init__(self) -> None:
        by_cell: dict[tuple[float, Variant], dict[int, Record]] = defaultdict(dict)
        ordered = sorted(self.records, key=lambda r: r.created)
        # Of each scale the data of the newest run that ended ok, or else of the newest run.
        data = {r.scale: r.data_fingerprint for r in sorted(ordered, key=lambda r: r.outcome == "ok")}
        timed = [r for r in ordered if not r.control]
        self.other_data = sum(r.data_fingerprint != data[r.scale] for r in timed)
        for r in timed:
            if r.data_fingerprint == data[r.scale]:
                by_cell[r.scale, Variant.of(r)][r.repeat] = r  # the newest of each round counts
        for (scale, variant), rounds in sorted(by_cell.items()):
            cell = RunGroup(tuple(rounds[i] for i in sorted(rounds)))
            self.cells.setdefault(scale, {})[variant] = cell

    @property
    def apart_s(self) -> float:
        """The longest time between two runs of one round and scale in seconds; 0 if it is below REST."""
        times: dict[tuple[float, int], list[float]] = defaultdict(list)
        for scale, row in self.cells.items():
            for r in (r for cell in row.values() for r in cell.records):
                times[scale, r.repeat].append(r.created.timestamp())
        longest = max(max(group) - min(group) for group in times.values())
        return longest if longest >= REST else 0.0

    @property
    def first(self) -> Record:
        """A record, used for the facts that all records have in common."""
        return self.records[0]

    @property
    def largest(self) -> float:
        """The largest scale."""
        return max(self.cells)

    @property
    def rows_at_full(self) -> float:
        """Rows that the job predicts at scale 1, in proportion to the largest run; 0 if no run ended ok."""
        good = [r for r in self.records if r.outcome == "ok" and r.rows]
        biggest = max(good, key=lambda r: r.scale, default=None)
        return 0.0 if biggest is None else biggest.rows / biggest.scale

    def work(self, variant: Variant) -> WorkFields | None:
        """The work of a variant's models for one row, in its largest run; None if that has no record of it."""
        return self.cells[max(self.series(variant))][variant].first.work

    def series(self, variant: Variant) -> dict[float, list[float]]:
        """Scale -> wall seconds of a variant, at the scales at which it is ranked."""
        column = {scale: row[variant] for scale, row in self.cells.items() if variant in row}
        walls = {
            scale: [w for w in cell.walls.values() if w] for scale, cell in column.items() if cell.ranked
        }
        return {scale: costs for scale, costs in walls.items() if costs}

    def peaks(self, variant: Variant, figure: str = "peak_memory_bytes") -> dict[float, list[float]]:
        """Scale -> peak bytes of a variant at the scales at which it is ranked. figure: field of a record, by default the host's peak."""
        column = {scale: row[variant] for scale, row in self.cells.items() if variant in row}
        peaks = {
            scale: [float(peak) for r in cell.records if (peak := getattr(r, figure))]
            for scale, cell in column.items()
            if cell.ranked
        }
        return {scale: sizes for scale, sizes in peaks.items() if sizes}


def groups(records: Iterable[Record], task: str) -> list[Group]:
    """The timed runs of a task that may be compared over sizes; the group with the most scales first."""
    by_key: dict[comparable.Key, list[Record]] = defaultdict(list)
    for r in records:
        if r.task == task and r.job == "predict" and not r.published:
            by_key[comparable.times(r, without=comparable.GROWTH)].append(r)
    return sorted((Group(rs) for rs in by_key.values() if any(not r.control for r in rs)), key=_size)


def _size(group: Group) -> tuple[int, int]:
    return -len(group.cells), -len(group.records)


def baselines(group: Group, task: TaskConfig) -> dict[str, Variant | None]:
    """The two CPU baselines at the largest scale.

    `plain` is the reference engine and backend on one core, as most competitors use. `tuned` is the fastest CPU
    variant of those with the most cores. Variants with too few rounds for an interval count only if no other has more.
    """
    row = {v: c for v, c in group.cells[group.largest].items() if c.ranked and v.device == "cpu"}
    # A run of few rounds would leave the others without an interval.
    rounds = min(max((len(c.records) for c in row.values()), default=0), statistics.LEAST_ROUNDS)
    row = {v: c for v, c in row.items() if len(c.records) >= rounds}
    plain = [v for v, c in row.items() if c.first.budget.cores == 1 and gate.is_reference(c.first, task)]
    most = max((cores(c.first) for c in row.values()), default=0)
    tuned = [v for v, c in row.items() if cores(c.first) == most]
    return {
        "plain": min(plain, key=lambda v: row[v].wall_s, default=None),
        "tuned": min(tuned, key=lambda v: row[v].wall_s, default=None),
    }


def cores(r: Record) -> int:
    """Cores that a run could use."""
    return min(r.budget.cores or r.machine.cores, r.machine.cores)


@dataclass(frozen=True)
class Noise:
    """How much two runs of the same variant differ on a machine, measured with A/A pairs."""

    band: float  # log ratio
    pairs: int

    @property
    def per_cent(self) -> float:
        """The band as a difference in per cent."""
        return 100 * math.expm1(self.band)


def wall(r: Record) -> float | None:
    """Wall seconds of a record."""
    return r.wall_s


def noise(
    records: Iterable[Record],
    like: Record,
    rounds: int,
    figure: Callable[[Record], float | None] = wall,
    *,
    of_machine: bool = False,
) -> Noise | None:
    """The noise of a figure over `rounds` rounds on the machine of `like`; None with fewer than two A/A pairs.

    The A/A pairs are those of the same task and scale if there are two, else, or with `of_machine`, all pairs of the machine. The band is
    the 95 % interval of the mean log ratio of that many A/A rounds.
    """
    facts = comparable.noise(like)
    here = [r for r in records if r.outcome == "ok" and comparable.noise(r) == facts]
    pairs = [(a, b) for a, b in aa_pairs(here) if figure(a) and figure(b)]
    same = [(a, b) for a, b in pairs if (b.task, b.scale) == (like.task, like.scale)]
    used = pairs if of_machine or len(same) < 2 else same
    if len(used) < 2:
        return None
    logs = [math.log((figure(b) or 1.0) / (figure(a) or 1.0)) for a, b in used]
    spread = math.sqrt(sum(x * x for x in logs) / len(logs))  # the true mean of an A/A ratio is 1
    return Noise(statistics.t_quantile(len(logs)) * spread / math.sqrt(max(rounds, 1)), len(used))


def aa_pairs(records: Iterable[Record]) -> list[tuple[Record, Record]]:
    """Each control run with the nearest run in time of the same variant, data and round."""
    runs: dict[comparable.Key, dict[bool, dict[str, Record]]] = defaultdict(lambda: {True: {}, False: {}})
    for r in records:
        runs[comparable.close_times(r), Variant.of(r), r.repeat][r.control][r.run_id] = r
    return [
        (min(kinds[False].values(), key=lambda a: abs(a.created - b.created)), b)
        for kinds in runs.values()
        for b in kinds[True].values()
        if kinds[False]
    ]


def price(prices: Mapping[str, float], device: str, wall_s: float) -> float | None:
    """US dollars of a run; None without a price per hour for its device."""
    rate = prices.get(device)
    return None if rate is None else rate * wall_s / 3600


def parse_prices(text: str) -> dict[str, float]:
    """`cpu=e2-highmem-8,cuda=3.7` -> US dollars per hour by device. Names are those of configs/prices.yaml. Raises UsageError."""
    named = {entry["name"]: float(entry["usd_per_hour"]) for entry in load_yaml("prices.yaml")}
    prices = {}
    for part in filter(None, text.split(",")):
        device, equals, value = part.strip().partition("=")
        if not equals or device not in ("cpu", "cuda"):
            raise UsageError(f"--price {part}: not of the form cpu=PRICE or cuda=PRICE")
        try:
            prices[device] = named[value] if value in named else float(value)
        except ValueError:
            raise unknown_name("price", value, named) from None
        if not prices[device] >= 0 or math.isinf(prices[device]):
            raise UsageError(f"--price {part}: a price per hour must be a number of at least 0")
    return prices


@dataclass(frozen=True)
class VariantResult:
    """One variant at one scale, compared with the two baselines."""

    variant: Variant
    cell: RunGroup
    speed_up: dict[str, Ratio | None]  # by baseline: how many times faster
    is_noise: dict[str, bool | None]  # by baseline; None if neither the interval nor the noise is known
    cost_usd: float | None


@dataclass(frozen=True)
class ScalingFit:
    """How a variant's cost grows with size, where it breaks even with the baselines, and its full job."""

    variant: Variant
    growth: PowerLaw
    exponent: tuple[float, float] | None  # 95 % interval; None with too few sizes or rounds
    check: statistics.Check | None
    break_even_rows: dict[str, float | None]  # by baseline: number of rows above which this variant is faster
    full: Projection
    full_memory: Projection | None
    full_gpu_memory: Projection | None
    budget: Budget  # the limits that the projection is compared with
    verdict: str


@dataclass(frozen=True)
class JobTime:
    """A variant's time for some number of rows, and the share that this job has of the published job."""

    variant: Variant
    rows: float
    wall_s: float
    is_projected: bool
    share: Share


@dataclass(frozen=True)
class Truth:
    """The full job of a variant as it was projected from the smaller sizes only, and as it was measured."""

    variant: Variant
    predicted: Projection
    measured_s: float

    @property
    def holds(self) -> bool | None:
        """Whether the interval contains the measured time; None without an interval."""
        if self.predicted.low is None or self.predicted.high is None:
            return None
        return self.predicted.low <= self.measured_s <= self.predicted.high


@dataclass(frozen=True)
class Comparison:
    """The comparison of one group, with all figures that `buzzer compare` shows."""

    group: Group
    baselines: dict[str, Variant | None]
    results: dict[float, list[VariantResult]]  # scale -> variants, fastest first
    fits: list[ScalingFit]
    noise: Noise | None
    truths: list[Truth]
    job_times: list[JobTime]  # empty if no job is published for the task


def compare(
    group: Group,
    task: TaskConfig,
    budget: Budget | None,
    prices: Mapping[str, float],
    pool: Sequence[Record],
    full: float = 1.0,
) -> Comparison:
    """Compare the variants of a group.

    prices: US dollars per hour by device. pool: records that may hold A/A pairs. full: scale of the job to project. budget:
    limits of that job; by default each variant's budget.
    """
    base = baselines(group, task)
    rounds = max(len(c.records) for c in group.cells[group.largest].values())
    level = noise(pool, next(iter(group.cells[group.largest].values())).first, rounds)
    results = {scale: _results(group, scale, base, prices, pool) for scale in sorted(group.cells)}
    fits = _scaling_fits(group, base, budget, full)
    return Comparison(group, base, results, fits, level, truths(group, full), _job_times(group, fits))


def truths(group: Group, full: float = 1.0) -> list[Truth]:
    """The variants that were measured at the size `full` and at two smaller sizes or more, from which it is projected."""
    found = []
    for variant in sorted(group.cells.get(full, {})):
        series = group.series(variant)
        smaller = {scale: walls for scale, walls in series.items() if scale < full}
        if full in series and len(smaller) >= 2:
            found.append(Truth(variant, statistics.project(smaller, full), group.cells[full][variant].wall_s))
    return found


def _job_times(group: Group, fits: Sequence[ScalingFit]) -> list[JobTime]:
    """The times at the largest scale, and the projected times of a larger job, with their shares of the published job."""
    job = published_job.job_of(group.first.task)
    if job is None:
        return []
    cells = {v: cell for v, cell in group.cells[group.largest].items() if cell.ranked}
    projected = [fit for fit in fits if fit.full.size not in group.series(fit.variant)]
    times = [(v, float(c.first.rows), c.wall_s, c.first.work, False) for v, c in cells.items()]
    times += [
        (fit.variant, group.rows_at_full * fit.full.size, fit.full.value, group.work(fit.variant), True)
        for fit in projected
    ]
    return [
        JobTime(variant, rows, wall_s, is_projected, published_job.share(job.work, rows, work))
        for variant, rows, wall_s, work, is_projected in times
    ]


def _results(
    group: Group,
    scale: float,
    base: Mapping[str, Variant | None],
    prices: Mapping[str, float],
    pool: Sequence[Record],
) -> list[VariantResult]:
    row, results = group.cells[scale], []
    for variant, cell in row.items():
        ratios: dict[str, Ratio | None] = {}
        noisy: dict[str, bool | None] = {}
        for name, other in base.items():
            against = row.get(other) if other is not None else None
            comparable = against is not None and against.ranked and cell.ranked and other != variant
            ratios[name] = statistics.paired(against.walls, cell.walls) if against and comparable else None
            level = noise(pool, cell.first, len(cell.records))
            ratio = ratios[name]
            noisy[name] = ratio.is_noise(level.band if level else None) if ratio else None
        results.append(
            VariantResult(variant, cell, ratios, noisy, price(prices, variant.device, cell.wall_s))
        )
    return sorted(results, key=lambda result: (not result.cell.ranked, result.cell.wall_s))


def _scaling_fits(
    group: Group, base: Mapping[str, Variant | None], budget: Budget | None, full: float
) -> list[ScalingFit]:
    variants = sorted({v for row in group.cells.values() for v in row})
    series = {v: s for v in variants if len(s := group.series(v)) >= 2}
    growths = {v: statistics.grow(s) for v, s in series.items()}
    return [_scaling_fit(group, v, growths, base, budget, full) for v in series]


def _scaling_fit(
    group: Group,
    variant: Variant,
    growths: Mapping[Variant, PowerLaw],
    base: Mapping[str, Variant | None],
    budget: Budget | None,
    full: float,
) -> ScalingFit:
    series, growth = group.series(variant), growths[variant]
    wall = statistics.project(series, full)
    memory = _peak_at(group.peaks(variant), full)
    gpu_memory = _peak_at(group.peaks(variant, "gpu_peak_memory_bytes"), full)
    measured = group.cells[max(series)][variant].first
    limit = budget or own_budget(measured)
    even = {
        name: _break_even(group, growths[other], growth)
        for name, other in base.items()
        if other is not None and other != variant and other in growths
    }
    return ScalingFit(
        variant,
        growth,
        None if statistics.needs(series) else scaling.exponent(series),
        statistics.check(series),
        even,
        wall,
        memory,
        gpu_memory,
        limit,
        fits_budget(wall, memory, limit, cores(measured), gpu_memory),
    )


def _peak_at(peaks: Mapping[float, list[float]], full: float) -> Projection | None:
    return statistics.project(peaks, full) if len(peaks) >= 2 else None


def own_budget(r: Record) -> Budget:
    """The budget that a run had."""
    limits = r.budget
    return Budget(limits.name, limits.cores, limits.memory_bytes, limits.time_s, limits.gpu_memory_bytes)


def _break_even(group: Group, slow: PowerLaw, fast: PowerLaw) -> float | None:
    smallest, largest = min(group.cells), max(group.cells)
    size = statistics.crossing(slow, fast, smallest / REACH, largest * REACH)
    return None if size is None else size * group.rows_at_full


def fits_budget(
    wall: Projection,
    memory: Projection | None,
    budget: Budget,
    used_cores: int,
    gpu_memory: Projection | None = None,
) -> str:
    """Whether the full job stays within a budget: `yes`, `no`, `too near to tell`, or which measurements are missing.

    Runs that used more cores than the budget has give no verdict.
    """
    if budget.cores is not None and used_cores > budget.cores:
        return f"measured on {used_cores} cores"
    verdicts = {wall.verdict(budget.time_s)}
    if memory is not None:
        verdicts.add(memory.verdict(budget.memory_bytes))
    if gpu_memory is not None:
        verdicts.add(gpu_memory.verdict(budget.gpu_memory_bytes))
    order = {statistics.NO: 0, statistics.NEAR: 2, statistics.YES: 3}
    return min(verdicts, key=lambda verdict: order.get(verdict, 1))
