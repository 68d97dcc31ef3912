"""The schema of a result record, version 1. docs/records.md describes every field."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from buzzer.models.api.context import SCORE
from buzzer.suite.budget import LARGEST, LEAST_WALL_S, MOST_CORES, MOST_S
from buzzer.suite.escape import printable
from buzzer.suite.records import strict_json

SCHEMA_MINOR = 1  # of new records; docs/records.md lists what each minor version changed
PHASE_TOLERANCE = 0.01  # share of the wall time by which the sum of the phases may differ from it
PHASE_SLACK_S = (
    0.02  # additional seconds, because the kernel reports the start of a process in steps of 10 ms
)
# A run counts as disturbed if other processes took more than this share of its cores and more than these CPU seconds. The most
# measured on an idle machine, in runs of 0.3 s, was 0.03 and 0.04 s; the least with another process on the same core 0.6 and 0.3 s.
DISTURBED, DISTURBED_S = 0.05, 0.1

LEAST_LAP_S = 1e-9  # least time of a bench run, because rates are rows divided by it
BENCH_RUNS = ("warm_run", "cold_run", "warm_run_device", "cold_run_device")  # samples of single runs

# Records are untrusted input. The bounds are far from any real run and keep arithmetic finite. Validated text is printable.
Outcome = Literal["ok", "timeout", "host-oom", "device-oom", "wrong", "error", "unsupported"]
Seconds = Annotated[float, Field(ge=0, le=MOST_S)]
Joules = Annotated[float, Field(ge=0, le=1e15)]
Bytes = Annotated[int, Field(ge=0, lt=LARGEST)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Cores = Annotated[int, Field(ge=1, le=MOST_CORES)]
Rate = Annotated[float, Field(ge=1, le=1e24)]  # bytes or FLOPs per second
Score = Annotated[float, Field(ge=-1e100, le=1e100)]
Amount = Annotated[float, Field(ge=0, le=1e24)]  # of work
Name = Annotated[str, Field(max_length=300), AfterValidator(printable)]  # one line
Text = Annotated[str, AfterValidator(partial(printable, keep="\n\t"))]
RunId = Annotated[str, Field(pattern=r"^[0-9A-Za-z]{1,64}$")]


class Strict(BaseModel):
    """A part of a record: unknown fields, NaN and infinite numbers are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Gpu(Strict):
    """One GPU of a machine."""

    name: Name = Field(description="model name of the GPU")
    memory_bytes: Bytes | None = Field(default=None, description="memory of the GPU; null = not known")
    driver: Name = Field(default="", description="version of its driver; empty = not known")


class Machine(Strict):
    """The machine that a run was made on."""

    cpu: Name = Field(description="model name of the processor")
    simd: Name = Field(default="", description="widest vector instructions; empty in older records")
    cores: Cores = Field(description="CPU cores that a run may use")
    memory_bytes: Bytes = Field(description="host memory")
    system: Name = Field(default="", description="operating system and its release")
    arch: Name = Field(default="", description="architecture of the processor")
    gpus: list[Gpu] = Field(description="the GPUs that the driver shows")


class BudgetFields(Strict):
    """The limits of a run."""

    name: Name = Field(description="name or written-out form, as the user gave it")
    cores: Cores | None = Field(description="CPU cores; null = all of the machine's")
    memory_bytes: Bytes | None = Field(gt=0, description="host memory limit; null = none")
    time_s: Seconds | None = Field(ge=LEAST_WALL_S, description="wall-time limit; null = none")
    gpu_memory_bytes: Bytes | None = Field(
        default=None, gt=0, description="memory limit of each GPU; null = none"
    )
    unmet: list[Text] = Field(default=[], description="limits that the machine cannot provide, in words")


class Phase(Strict):
    """One phase of a run."""

    name: Name = Field(
        description="start (interpreter and imports), load, features, fit, transfer, predict, ..."
    )
    wall_s: Seconds = Field(description="wall time of the phase, summed over its visits")
    cpu_s: Seconds = Field(description="CPU seconds of the run's main process in the phase")
    peak_memory_bytes: Bytes = Field(description="highest resident size in the phase; 0 = not known")


class Gate(Strict):
    """The result of comparing a run's scores with those of the reference run."""

    status: Literal["passed", "failed", "reference", "no-reference", "unscored"] = Field(
        description="outcome of the comparison with the reference engine and backend on the same data"
    )
    reference_run: RunId | None = Field(default=None, description="run_id compared with")
    differences: dict[Name, Score] = Field(
        default={}, description="score name -> this run minus the reference"
    )


class Open(BaseModel):
    """Validated fields of an object that may also have any other fields."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)


class Sizes(Open):
    """The parameters of a bench record that tables use."""

    # Before 2.10, Pydantic warned of names that begin with `model_`.
    model_config = ConfigDict(protected_namespaces=())
    batch: int = Field(ge=1, lt=1 << 53)
    seq: Count
    lengths: Literal["fixed", "real"]
    scenario: Literal["", "single-stream", "offline", "server"]
    model_hash: str = Field(default="", pattern=r"^[0-9a-f]*$", max_length=64)
    model: dict[str, Any] = {}


class Facts(Open):
    """The details of a record that tables use."""

    ceiling: Score | None = None
    ceilings: dict[Name, Score] = {}
    layers: int = Field(default=0, ge=0, le=10**6)
    import_s: dict[Name, Seconds] = {}


class Verdict(Open):
    """The fields of LoadGen's summary that tables use."""

    result: Text
    line: Text


def validated(model: type[Open], fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with the fields of `model` replaced by their validated values. Raises ValueError."""
    try:
        values = model.model_validate(fields)
    except ValidationError as error:
        raise ValueError(wrong_fields(error)) from error
    return fields | values.model_dump(exclude_unset=True)


class Bench(Strict):
    """The measurement of a bench run, its least work, and its settings; only for job `bench`."""

    batch: Count = Field(ge=1, description="rows (sentences, sessions) per run")
    seq: Count = Field(description="tokens per row, 0 = rows have none; with `packed`, tokens per run")
    lengths: Literal["fixed", "real"] = Field(
        description="rows of `seq` tokens, or as long as real sentences"
    )
    packing: Literal["padded", "sorted", "packed"] = Field(description="how rows of real lengths share a run")
    scenario: Literal["", "single-stream", "offline", "server"] = Field(
        description="MLPerf scenario; empty = timed one run after another"
    )
    inputs: Count = Field(ge=1, description="different batches that the runs rotate through")
    rows: Count = Field(description="rows in the runs of `samples.warm_run`")
    flops: Bytes | None = Field(description="FLOPs of one run; a multiply-add counts as two")
    bytes_moved: Bytes | None = Field(description="least bytes of one run: weights, inputs, outputs")
    kernels: Count | None = Field(description="kernels or operators in one run; null = not known")
    floor_s: Seconds | None = Field(description="max(bytes_moved / bandwidth, flops / peak)")
    bandwidth: Rate = Field(description="bytes per second, measured on this machine")
    peak: Rate | None = Field(
        description="FLOPs per second of a matrix product in this precision, measured on this machine"
    )
    threads: Cores = Field(description="threads of the session")
    affinity: list[Count] = Field(description="cores that the process could use")
    denormals: Literal["flushed", "kept"] = Field(description="whether denormals were flushed to zero")
    checked_runs: Count = Field(description="runs whose outputs were compared with the reference's")
    bad_runs: Count = Field(description="of these, runs whose outputs were not finite or not written")
    loadgen: dict[str, Any] | None = Field(default=None, description="LoadGen's result and figures")

    @field_validator("loadgen")
    @classmethod
    def _loadgen(cls, summary: dict[str, Any] | None) -> dict[str, Any] | None:
        return summary and validated(Verdict, summary)


class WorkFields(Strict):
    """The work that the models of a run define for one row, as a mean over the rows (`models.api.context.Work`)."""

    trees: Amount = Field(description="trees that a row meets")
    tree_nodes: Amount = Field(description="inner nodes that a row visits in them")
    network_flops: Amount = Field(description="FLOPs of the networks; a multiply-add counts as two")
    table_rows: Count = Field(description="rows of all lookup tables that the fit saved")
    summed_rows: Count | None = Field(
        default=None, description="training rows that the lookup tables sum up; null if there are no sums"
    )


class Record(Strict):
    """The record of one run."""

    schema_version: Literal[1] = Field(default=1, description="version of this schema")
    schema_minor: Literal[0, 1] = Field(
        default=0,
        description="rules by which the figures were measured: in 1, `wall_s`, `cpu_s` and the peaks exclude scoring",
    )
    run_id: RunId = Field(description="unique id of the run")
    created: AwareDatetime = Field(description="UTC time at which the run ended")
    published: bool = Field(
        default=False, description="true for a figure published by others, which buzzer did not measure"
    )
    task: Name = Field(description="task name, as `buzzer list` shows it")
    job: Literal["fit", "predict", "bench"] = Field(
        description="`fit` trains and saves; `predict` is the timed job; `bench` times one model alone"
    )
    engine: Name = Field(description="feature engine; `none` where a task has no feature frames")
    backend: Name = Field(description="inference backend")
    precision: Name = Field(description="fp32, bf16, int8, ...")
    device: Literal["cpu", "cuda"] = Field(description="where features and models ran")
    cluster: Name = Field(
        default="",
        description="`N workers` of a local Dask cluster, or the address of its scheduler; empty = one process",
    )
    scale: float = Field(ge=1e-100, le=1e100, description="share of the official data size")
    train_scale: float | None = Field(
        default=None,
        ge=1e-100,
        le=1e100,
        description="share of the official training rows, if they are a sample of those of `scale`; null = all of them",
    )
    seed: int = Field(ge=-LARGEST, lt=LARGEST, description="seed of generated data and of training")
    repeat: int = Field(default=0, ge=0, lt=1 << 31, description="number of the repetition, from 0")
    fit_id: Name | None = Field(
        default=None,
        description="the fit that the run made or used: the device that trained it, and a hash of all that the fit depends on",
    )
    control: bool = Field(
        default=False,
        description="true for the second run of an A/A pair, which measures noise and is not ranked",
    )
    budget: BudgetFields = Field(description="limits of the run")
    enforcement: Literal["cgroups", "polled", "none"] = Field(
        description="cgroups = by the kernel, through BenchExec; polled = the harness checks every 50 ms; none = not started"
    )
    outcome: Outcome = Field(description="ok, or how the run failed")
    message: Text = Field(default="", description="what happened, if the outcome is not ok")
    hint: Text = Field(default="", description="what to do about it")
    phase_reached: Name = Field(default="", description="last phase that began")
    scores: dict[Name, Score] = Field(default={}, description="metric name -> value")
    metric: Name = Field(description="name of the score that ranks")
    gate: Gate = Field(description="comparison with the reference run")
    rows: Count = Field(default=0, description="rows (trips, sentences, ...) predicted")
    sittings: int = Field(
        default=1,
        ge=1,
        lt=1 << 31,
        description="processes that did the run one after the other; above 1 = interrupted and resumed",
    )
    wall_s: Seconds = Field(
        description="from the start of the process to the end of the last phase before `score`"
    )
    score_s: Seconds | None = Field(
        default=None,
        description="wall time of phase `score`, outside `wall_s`; null = nothing was scored",
    )
    cpu_s: Seconds | None = Field(
        description="CPU seconds of all processes of the run, less the main process's in phase `score`"
    )
    peak_memory_bytes: Bytes | None = Field(
        description="before `score`; cgroups: peak of the control group, page cache included; polled: highest sum of"
        " resident sizes"
    )
    gpu_peak_memory_bytes: Bytes | None = Field(
        default=None,
        description="peak device memory above what was in use before the run, by NVML; null = not measured",
    )
    gpu_busy_s: Seconds | None = Field(
        default=None,
        description="seconds of the run in which the GPU was busy, by NVML; null = not measured",
    )
    energy_j: dict[Name, Joules] | None = Field(
        default=None,
        description="joules by source, `cpu` (RAPL) and `gpu` (NVML); null = no readable counter",
    )
    overhead_s: Seconds = Field(
        description="time that the harness itself took for this run: set-up, clock, tear-down, record"
    )
    phases: list[Phase] = Field(
        description="in order of first visit; those before `score` add up to wall_s within 1 %"
    )
    samples: dict[Name, list[Seconds]] = Field(
        description="phase name -> wall time of each lap (batch, chunk)"
    )
    machine: Machine = Field(description="where the run was made")
    load_before: float = Field(ge=0, le=1e9, description="load average of the machine just before the run")
    others_cpu_s: Seconds | None = Field(
        default=None,
        description="CPU seconds that other processes, interrupts and the hypervisor took on the run's cores meanwhile",
    )
    page_cache: Literal["warm", "as found"] | None = Field(
        default=None,
        description="warm = every input file was read just before the run; as found = they are too large for that",
    )
    compiled_caches: Literal["cold", "warm"] | None = Field(
        default=None,
        description="warm = a cache of compiled code was not empty before the run; null = not known",
    )
    versions: dict[Name, Name] = Field(description="Python and library versions")
    git_commit: Name | None = Field(
        description="commit of the code, `+dirty` with local changes; null = not run from a checkout"
    )
    data_source: Literal["official", "generated"] = Field(description="where the input data came from")
    data_fingerprint: Name = Field(
        description="sha256 over the input files' names and contents; empty = the run was not started because its data were missing"
    )
    data_rows: dict[Name, Count] = Field(default={}, description="rows by input file")
    notes: list[Text] = Field(
        default=[], description="what a reader must know (generated data, random weights, ...)"
    )
    config: dict[str, Any] = Field(description="the task's parameters")
    config_hash: Name = Field(description="sha256 of the parameters, first 12 hex digits")
    command: list[Text] = Field(description="command line that started the suite")
    bench: Bench | None = Field(default=None, description="only for job `bench`: sizes, least cost, settings")
    work: WorkFields | None = Field(
        default=None, description="work of the models for one row; null = the task does not count it"
    )
    details: dict[str, Any] = Field(default={}, description="task-specific facts (ceilings, sizes, ...)")
    stderr_tail: list[Text] = Field(default=[], description="last lines of the run's stderr, if it failed")
    content_hash: Name = Field(
        default="", description="sha256 of the record without this field, which reveals edits"
    )

    @property
    def engine_name(self) -> str:
        """The engine, and the cluster that it ran on."""
        return f"{self.engine}, {self.cluster}" if self.cluster else self.engine

    @property
    def shown_scores(self) -> dict[str, float]:
        """The scores for reports and frames. Empty if the models' weights are random (the task's parameter `weights`), because then scores
        mean nothing: only the gate compares them."""
        return {} if self.random_weights else self.scores

    @property
    def random_weights(self) -> bool:
        """Whether the models are not trained: times mean something, scores do not."""
        return self.config.get("weights") == "random"

    @property
    def score(self) -> float | None:
        """The score by which the task is ranked; None if `shown_scores` does not have it."""
        return self.shown_scores.get(self.metric)

    @property
    def disturbed(self) -> float | None:
        """Share of the run's cores that other processes used, if it is large enough to distort the times; else None."""
        seconds, cores = self.wall_s + (self.score_s or 0.0), self.budget.cores or self.machine.cores
        if self.others_cpu_s is None or not seconds:
            return None
        share = self.others_cpu_s / (cores * seconds)
        return share if share > DISTURBED and self.others_cpu_s > DISTURBED_S else None

    @property
    def scoring(self) -> Literal["inside", "outside"]:
        """Whether scoring is inside or outside the wall time. Runs that differ in this are never compared."""
        return "outside" if self.schema_minor >= 1 else "inside"

    @property
    def imports(self) -> dict[str, float]:
        """Package -> seconds that the run took to import it; empty in older records."""
        return self.details.get("import_s", {})

    @property
    def compared(self) -> list[Phase]:
        """The phases whose sum is `wall_s`."""
        return [p for p in self.phases if self.scoring == "inside" or p.name != SCORE]

    @field_validator("created")
    @classmethod
    def _in_utc(cls, created: datetime) -> datetime:
        if not 2000 <= created.year < 2200:
            raise ValueError(f"a run in the year {created.year}")
        return created.astimezone(UTC)

    @field_validator("details")
    @classmethod
    def _known_details(cls, details: dict[str, Any]) -> dict[str, Any]:
        strict_json.check(details, finite=False)
        return validated(Facts, strict_json.without_nan(details))

    @model_validator(mode="after")
    def _bench_has_sizes(self) -> "Record":
        if self.job != "bench":
            return self
        validated(Sizes, self.config)
        timed = [lap for name in BENCH_RUNS for lap in self.samples.get(name, [])]
        if min(timed, default=1.0) < LEAST_LAP_S:
            raise ValueError("a bench run that took no time")
        return self

    @model_validator(mode="after")
    def _takes_time(self) -> "Record":
        if self.outcome == "ok" and self.wall_s < LEAST_WALL_S:
            raise ValueError(f"ok after {self.wall_s:g} s: no process starts and ends in that time")
        return self

    @model_validator(mode="after")
    def _phases_add_up(self) -> "Record":
        total = sum(p.wall_s for p in self.compared)
        if self.outcome == "ok" and abs(total - self.wall_s) > PHASE_TOLERANCE * self.wall_s + PHASE_SLACK_S:
            raise ValueError(f"phases add up to {total:.3f} s, wall_s is {self.wall_s:.3f} s")
        spent = sum(p.wall_s for p in self.phases if p not in self.compared)
        if abs(spent - (self.score_s or 0.0)) > PHASE_SLACK_S:
            raise ValueError(f"phase {SCORE} took {spent:.3f} s, score_s is {self.score_s or 0.0:.3f} s")
        return self


def wrong_fields(error: ValidationError, most: int = 5) -> str:
    """The first invalid fields, each with its error, in one line."""
    errors = error.errors(include_url=False, include_input=False)
    messages = [f"{'.'.join(map(str, e['loc'])) or 'record'}: {e['msg']}" for e in errors[:most]]
    more = [f"and {len(errors) - most} more"] if len(errors) > most else []
    return "; ".join([*(m if len(m) < 300 else f"{m[:300]}..." for m in messages), *more])


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a record."""
    return Record.model_json_schema()
