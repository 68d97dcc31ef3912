"""The interface between the harness and a task: the context of a run, its input data, its phases and its result.

A task's `fit` and `predict` are generators. Each `yield "phase"` starts the phase of that name; the harness reads the clock at
every yield. Yielding the same name again starts a new lap (one batch, for example): the time of a phase is the sum of its laps, and
each lap is recorded as a raw sample. Tasks do not depend on clocks or budgets.

A phase may have any name. The built-in tasks use `load`, `preprocess`, `features`, `fit`, `transfer`, `predict`, `trees`,
`networks`, `latency` and `write`. The last phase is `score`; the compared time ends when it starts.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from buzzer.datasets.contract import Progress

GIVEN = "generated files, given by --data"  # a note of `Data`
SCORE = "score"  # recorded, but not part of the wall time


@dataclass(frozen=True)
class RunContext:
    """The settings of one run. All values are plain, because it is sent to another process as JSON."""

    task: str
    engine: str  # a feature engine of buzzer.engine.frames
    backend: str  # an inference backend of buzzer.engine.infer
    precision: str  # "fp32", "bf16", "int8", ...
    device: str  # "cpu" or "cuda"
    data: Path  # folder of the input files in the official format
    work: Path  # folder for the files that `fit` saves and `predict` reads; `predict` must not write to it
    out: Path  # folder for the submission file
    scale: float  # size relative to the official data; 1 = official
    seed: int
    threads: int  # CPU threads that the budget allows
    params: Mapping[str, Any] = field(default_factory=dict)  # the task's own parameters
    workers: int = 0  # number of Dask workers (with a GPU engine one per GPU); 0 = no cluster
    scheduler: str = ""  # address of a running Dask scheduler; "" = none
    gpu_memory_bytes: int | None = None  # limit of the memory used on each GPU; None = no limit
    # Folder in which `predict` of a task with `resumable: true` keeps whole pieces of its work; they are there again when an
    # interrupted run goes on. None = the run cannot go on.
    partial: Path | None = None

    @property
    def clustered(self) -> bool:
        """Whether the run uses a Dask cluster."""
        return bool(self.workers or self.scheduler)


@dataclass(frozen=True)
class Data:
    """Input data that has been checked."""

    folder: Path
    fingerprint: str  # sha256 over names and contents
    source: str  # "official" or "generated"
    rows: Mapping[str, int]  # file -> number of rows
    scale: float  # size relative to the official data; 1 for official files
    notes: tuple[str, ...] = ()  # important remarks for readers of the record ("stand-in for CLINC150", ...)
    fit_fingerprint: str = (
        ""  # like `fingerprint`, but only of the files that `fit` reads; "" = it may read all
    )
    # Share of the official training rows, if they are a sample of those of `scale`.
    train_scale: float | None = None


@dataclass(frozen=True)
class BenchResult:
    """The results of `buzzer bench` in addition to the samples; the record's field `bench`.

    The record's model (`suite/records/record.py`) documents each field and checks its bounds.
    """

    batch: int  # rows per run
    seq: int  # tokens per row, 0 if rows have no tokens
    lengths: str  # "fixed" or "real"
    packing: str  # "padded", "sorted" or "packed"
    scenario: str  # MLPerf scenario, or ""
    inputs: int  # different batches
    rows: int  # rows in all warm runs
    flops: int | None  # of one run
    bytes_moved: int | None  # least bytes of one run
    kernels: int | None  # kernels or operators in one run
    floor_s: float | None  # max(bytes_moved / bandwidth, flops / peak)
    bandwidth: float  # bytes per second, measured
    peak: float | None  # FLOPs per second, measured
    threads: int
    affinity: Sequence[int]  # cores that the process could use
    denormals: str  # "flushed" or "kept"
    checked_runs: int  # runs whose outputs were compared with the reference outputs
    bad_runs: int  # checked runs whose outputs were not finite or not written
    loadgen: Mapping[str, Any] | None = None  # LoadGen's verdict and figures, as JSON


@dataclass(frozen=True)
class Work:
    """The work that a pipeline's models define for one row, as a mean over the rows.

    It follows from the models alone. An engine that reaches the same outputs with fewer operations does not change it, so it shows
    whether two runs did the same job.
    """

    trees: float  # trees that a row meets
    tree_nodes: float  # inner nodes that a row visits in them
    network_flops: float  # floating point operations of the networks, 2 for each product and sum
    table_rows: int  # rows of all lookup tables that `fit` saved
    summed_rows: int | None = None  # training rows that the lookup tables sum up; None if there are no sums


@dataclass(frozen=True)
class Result:
    """The return value of a task's `fit` or `predict`."""

    scores: Mapping[str, float] = field(default_factory=dict)  # metric name -> value
    rows: int = 0  # number of predicted rows (trips, sentences)
    details: Mapping[str, Any] = field(default_factory=dict)  # task-specific facts, as JSON
    files: tuple[Path, ...] = ()  # the submission files, under `out` of the context
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)  # seconds that the task timed itself
    notes: tuple[str, ...] = ()  # important remarks on this run for readers of the record
    bench: BenchResult | None = None  # only for `buzzer bench`
    work: Work | None = None  # None if the task does not count it


Steps = Generator[str, None, Result]


class Task(Protocol):
    """One competition or benchmark task; `entry: module:attr` in configs/tasks/<name>.yaml names it."""

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        """Check the official files under `source`, or generate data under `cache` unless it exists. Not timed.

        A task whose data set has it may have the keyword `train_scale` (float | None): share of the official training rows to
        generate, as a sample of those of `scale`. Raises DataError for files that are missing, truncated or do not match the schema.
        """
        ...

    def fit(self, context: RunContext, /) -> Steps:
        """Train, and save the files for `predict` under `context.work`."""
        ...

    def predict(self, context: RunContext, /) -> Steps:
        """The timed run: reads the raw test file, writes the submission file, then scores it in the phase `score` if there is a truth.

        The files named in its result must be complete before `score` starts.
        """
        ...


@runtime_checkable
class ParamsChecker(Protocol):
    """A `Task` that can refuse parameters before its data are prepared."""

    def check(self, task: str, params: Mapping[str, Any], /) -> None:
        """Raises UsageError for parameters with which the task, known by the name `task`, cannot run."""
        ...
