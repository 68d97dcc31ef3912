"""What the harness asks of a task, and what it gives it.

A task's `fit` and `predict` are generators: each `yield "phase"` names the phase that begins there, and the
harness, which holds the clock, reads it at every yield. Yielding the same phase again marks a lap (one batch,
say): laps add up to the phase and each is kept as a raw sample. Tasks know nothing of clocks or budgets.

The phase `score` comes last, after `write`: what is timed and compared ends where it begins.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

SCORE = "score"  # recorded, but outside the wall time
PHASES = (
    "load",
    "preprocess",
    "features",
    "fit",
    "transfer",
    "predict",
    "trees",
    "networks",
    "latency",
    "write",
    SCORE,
    *("quantise", "compile", "warmup", "warm", "cold", "loadgen", "roof"),  # of `buzzer bench`
)


@dataclass(frozen=True)
class RunContext:
    """One run's settings, as plain values (it crosses a process boundary as JSON)."""

    task: str
    engine: str  # a name of buzzer.engine.frames.ENGINES
    backend: str  # a name of buzzer.engine.infer.BACKENDS
    precision: str  # "fp32", "bf16", "int8", ...
    device: str  # "cpu" or "cuda"
    data: Path  # folder of the files in the official format
    work: Path  # folder of what `fit` saves and `predict` reads; `predict` must not write there
    out: Path  # folder for the submission file
    scale: float  # share of the official size; 1 = official
    seed: int
    threads: int  # CPU threads the budget allows
    params: Mapping[str, Any] = field(default_factory=dict)  # the task's own config keys
    workers: int = 0  # Dask workers, on a GPU engine one a GPU; 0 = this process alone
    scheduler: str = ""  # address of a running Dask scheduler, whose workers are taken
    gpu_memory_bytes: int | None = None  # that a GPU engine may use, of each GPU; None = all

    @property
    def clustered(self) -> bool:
        return bool(self.workers or self.scheduler)


@dataclass(frozen=True)
class Data:
    """Input data that is checked and ready."""

    folder: Path
    fingerprint: str  # sha256 over names and contents
    source: str  # "official" or "generated"
    rows: Mapping[str, int]  # rows by file
    scale: float  # share of the official size; 1 for official files
    notes: tuple[str, ...] = ()  # what a reader of the record must know ("stand-in for CLINC150", ...)
    fit_fingerprint: str = ""  # as `fingerprint`, of the files that `fit` reads; "" = it may read all


@dataclass(frozen=True)
class Result:
    """What a job hands back."""

    scores: Mapping[str, float] = field(default_factory=dict)  # metric name -> value
    rows: int = 0  # rows (trips, sentences) predicted, for throughput
    details: Mapping[str, Any] = field(
        default_factory=dict
    )  # JSON-able facts worth keeping (sizes, ceilings, ...)
    files: tuple[Path, ...] = ()  # what was written under job.out
    samples: Mapping[str, Sequence[float]] = field(
        default_factory=dict
    )  # seconds that the job timed itself, beside the laps of its phases
    notes: tuple[str, ...] = ()  # what a reader of the record must know of this run


Steps = Generator[str, None, Result]
Progress = Callable[[float, str], None]  # share done in 0..1, what is being done


class Task(Protocol):
    """One competition or benchmark task; registered in configs/tasks/<name>.yaml by its `entry: module:attr`."""

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        """Check the official files under `source`, or generate data under `cache` (reused if there). Untimed.

        Raises DataError for files that are missing, cut or off the schema.
        """
        ...

    def fit(self, job: RunContext) -> Steps:
        """Train and save under `job.work`; must leave it complete or absent (write aside, then rename)."""
        ...

    def predict(self, job: RunContext) -> Steps:
        """The timed job: raw test file in, submission file out, then phase `score` where the truth is known.

        The files named in its result must be complete before `score` begins.
        """
        ...
