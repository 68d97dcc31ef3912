"""What the harness and a task exchange: the context of a run, its input data, its phases and its result.

A task's `fit` and `predict` are generators. Each `yield "phase"` names the phase that begins there; the harness holds the clock and
reads it at every yield. Yielding the same name again marks a lap (one batch, for example): laps add up to the phase, and each is
kept as a raw sample. Tasks know nothing of clocks and budgets.

A phase may have any name. The tasks here use `load`, `preprocess`, `features`, `fit`, `transfer`, `predict`, `trees`, `networks`,
`latency` and `write`. The last phase is `score`: the time that is compared ends where it begins.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from buzzer.datasets.contract import Progress

SCORE = "score"  # recorded, but not part of the wall time


@dataclass(frozen=True)
class RunContext:
    """The settings of one run, as plain values: it crosses a process boundary as JSON."""

    task: str
    engine: str  # a feature engine of buzzer.engine.frames
    backend: str  # an inference backend of buzzer.engine.infer
    precision: str  # "fp32", "bf16", "int8", ...
    device: str  # "cpu" or "cuda"
    data: Path  # folder of the input files in the official format
    work: Path  # folder of what `fit` saves and `predict` reads; `predict` must not write there
    out: Path  # folder for the submission file
    scale: float  # share of the official size; 1 = official
    seed: int
    threads: int  # CPU threads that the budget allows
    params: Mapping[str, Any] = field(default_factory=dict)  # the task's own parameters
    workers: int = 0  # number of Dask workers, with a GPU engine one a GPU; 0 = no cluster
    scheduler: str = ""  # address of a running Dask scheduler whose workers are used
    gpu_memory_bytes: int | None = None  # limit of the memory used on each GPU; None = no limit

    @property
    def clustered(self) -> bool:
        """Whether the run uses a Dask cluster."""
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
    fit_fingerprint: str = ""  # like `fingerprint`, of the files that `fit` reads; "" = it may read all


@dataclass(frozen=True)
class BenchResult:
    """What `buzzer bench` measured beside the samples; the record's field `bench`.

    The record's model (`suite/records/record.py`) documents each field and checks its bounds.
    """

    batch: int  # rows a run
    seq: int  # tokens a row, 0 where rows have none
    lengths: str  # "fixed" or "real"
    packing: str  # "padded", "sorted" or "packed"
    scenario: str  # MLPerf scenario, or ""
    inputs: int  # different batches
    rows: int  # rows in all warm runs
    flops: int | None  # of one run
    bytes_moved: int | None  # least bytes of one run
    kernels: int | None  # kernels or operators in one run
    floor_s: float | None  # max(bytes_moved / bandwidth, flops / peak)
    bandwidth: float  # bytes a second, measured
    peak: float | None  # FLOPs a second, measured
    threads: int
    affinity: Sequence[int]  # cores that the process could use
    denormals: str  # "flushed" or "kept"
    checked_runs: int  # runs whose outputs were compared with the reference outputs
    bad_runs: int  # of them, those whose outputs were not finite or not written
    loadgen: Mapping[str, Any] | None = None  # LoadGen's verdict and figures, as JSON


@dataclass(frozen=True)
class Result:
    """What a task's `fit` or `predict` returns."""

    scores: Mapping[str, float] = field(default_factory=dict)  # metric name -> value
    rows: int = 0  # rows (trips, sentences) predicted
    details: Mapping[str, Any] = field(default_factory=dict)  # the task's own facts, as JSON
    files: tuple[Path, ...] = ()  # the files handed in, under `out` of the context
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)  # seconds that the task timed itself
    notes: tuple[str, ...] = ()  # what a reader of the record must know of this run
    bench: BenchResult | None = None  # of `buzzer bench` only


Steps = Generator[str, None, Result]


class Task(Protocol):
    """One competition or benchmark task; `entry: module:attr` in configs/tasks/<name>.yaml names it."""

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        """Check the official files under `source`, or generate data under `cache` (reused if there). Not timed.

        Raises DataError for files that are missing, cut or do not match the schema.
        """
        ...

    def fit(self, context: RunContext, /) -> Steps:
        """Train, and save under `context.work`: all files or none (write aside, then rename)."""
        ...

    def predict(self, context: RunContext, /) -> Steps:
        """The timed run: raw test file in, submission file out, then phase `score` where the truth is known.

        The files named in its result must be complete before `score` begins.
        """
        ...
