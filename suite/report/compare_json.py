"""A comparison as JSON. It names records by their run_id."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from buzzer.suite.analysis.comparison import (
    Comparison,
    JobTime,
    Noise,
    ScalingFit,
    Truth,
    Variant,
    VariantResult,
)
from buzzer.suite.analysis.regress import Change, Failure
from buzzer.suite.analysis.statistics import Ratio
from buzzer.suite.records.repetitions import HeadRoom
from buzzer.suite.records.schema import Machine
from buzzer.suite.report.compare_text import differences


@dataclass(frozen=True)
class Run:
    """One variant at one scale."""

    variant: Variant
    scale: float
    rows: int
    outcome: str
    scores: dict[str, float]
    wall_s: float | None  # median; None if no run was started
    walls: list[float]
    phases: dict[str, float | None]  # medians of wall seconds
    speed_up: dict[str, Ratio | None]  # by baseline
    is_noise: dict[str, bool | None]  # by baseline
    head_room: HeadRoom
    peak_memory_bytes: int | None
    energy_j: float | None
    cost_usd: float | None
    gpu_busy_s: float | None
    gpu_peak_memory_bytes: int | None
    run_ids: list[str]


@dataclass(frozen=True)
class ComparisonData:
    """All figures of a comparison."""

    task: str
    machine: Machine
    seed: int
    config_hash: str
    data_source: str
    scoring: str
    differ: list[str]  # other differences between the records
    baselines: dict[str, Variant | None]
    noise: Noise | None
    runs: list[Run]
    trends: list[ScalingFit]
    truths: list[Truth]
    job_times: list[JobTime]
    changes: list[Change]
    failures: list[Failure]

    def to_json(self) -> str:
        """One JSON object on one line."""
        return json.dumps(asdict(self) | {"machine": self.machine.model_dump()})


def data(
    result: Comparison, changes: Sequence[Change] = (), failures: Sequence[Failure] = ()
) -> ComparisonData:
    """The figures of a comparison and of its changes against older records."""
    r = result.group.first
    return ComparisonData(
        task=r.task,
        machine=r.machine,
        seed=r.seed,
        config_hash=r.config_hash,
        data_source=r.data_source,
        scoring=r.scoring,
        differ=differences(result),
        baselines=result.baselines,
        noise=result.noise,
        runs=[_run(scale, line) for scale, lines in result.results.items() for line in lines],
        trends=result.fits,
        truths=result.truths,
        job_times=result.job_times,
        changes=list(changes),
        failures=list(failures),
    )


def _run(scale: float, line: VariantResult) -> Run:
    cell, r = line.cell, line.cell.first
    return Run(
        variant=line.variant,
        scale=scale,
        rows=r.rows,
        outcome=cell.outcome,
        scores=r.shown_scores,
        wall_s=cell.wall_s if cell.started else None,
        walls=list(cell.walls.values()),
        phases={name: cell.phase_s(name) for name in dict.fromkeys(p.name for p in r.phases)},
        speed_up=line.speed_up,
        is_noise=line.is_noise,
        head_room=cell.head_room,
        peak_memory_bytes=cell.peak,
        energy_j=cell.energy_j,
        cost_usd=line.cost_usd,
        gpu_busy_s=r.gpu_busy_s,
        gpu_peak_memory_bytes=r.gpu_peak_memory_bytes,
        run_ids=[x.run_id for x in cell.records],
    )
