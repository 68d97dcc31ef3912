"""The result record: one JSON a run, schema version 1. docs/records.md documents every field."""

import hashlib
import json
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

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

from buzzer.errors import DataError
from buzzer.models.api.context import SCORE
from buzzer.suite.budget import LARGEST, LEAST_WALL_S, MOST_CORES, MOST_S
from buzzer.suite.escape import printable

SCHEMA_VERSION = 1
SCHEMA_MINOR = 1  # of new records; docs/records.md lists what each minor changed
TRIAL_BYTES = 1 << 16  # more than a record has
PHASE_TOLERANCE = 0.01  # share of the wall time by which the phases may miss it
# From which share of its cores and CPU seconds on others disturb a run: with an idle machine 0.03 and 0.04 were the most of
# 0.3 s runs, with a neighbour on the same core 0.6 and 0.3 the least.
DISTURBED, DISTURBED_S = 0.05, 0.1
PHASE_SLACK_S = 0.02  # the kernel tells a process's start to 10 ms only

DEEPEST = 30  # nesting of a record's JSON
LEAST_LAP_S = 1e-9  # of a bench run: rates are rows by it
BENCH_RUNS = ("warm_run", "cold_run", "warm_run_device", "cold_run_device")  # samples of single runs

# Records come from anybody. Bounds are far from any real run and keep arithmetic finite; text is printable from here on.
Outcome = Literal["ok", "timeout", "host-oom", "device-oom", "wrong", "error", "unsupported"]
Seconds = Annotated[float, Field(ge=0, le=MOST_S)]
Joules = Annotated[float, Field(ge=0, le=1e15)]
Bytes = Annotated[int, Field(ge=0, lt=LARGEST)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Cores = Annotated[int, Field(ge=1, le=MOST_CORES)]
Rate = Annotated[float, Field(ge=1, le=1e24)]  # bytes or FLOPs a second
Score = Annotated[float, Field(ge=-1e100, le=1e100)]
Name = Annotated[str, Field(max_length=300), AfterValidator(printable)]  # one line
Text = Annotated[str, AfterValidator(partial(printable, keep="\n\t"))]
RunId = Annotated[str, Field(pattern=r"^[0-9A-Za-z]{1,64}$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Gpu(Strict):
    name: Name = Field(description="model name of the GPU")
    memory_bytes: Bytes | None = Field(default=None, description="memory of the GPU; null = not known")
    driver: Name = Field(default="", description="version of its driver; empty = not known")


class Machine(Strict):
    cpu: Name = Field(description="model name of the processor")
    simd: Name = Field(default="", description="widest vector instructions; empty in older records")
    cores: Cores = Field(description="CPU cores that a run may use")
    memory_bytes: Bytes = Field(description="host memory")
    system: Name = Field(default="", description="operating system and its release")
    arch: Name = Field(default="", description="architecture of the processor")
    gpus: list[Gpu] = Field(description="the GPUs that the driver shows")


class BudgetFields(Strict):
    name: Name = Field(description="name or written-out form, as asked for")
    cores: Cores | None = Field(description="CPU cores; null = all of the machine's")
    memory_bytes: Bytes | None = Field(gt=0, description="host memory limit; null = none")
    time_s: Seconds | None = Field(ge=LEAST_WALL_S, description="wall-time limit; null = none")
    gpu_memory_bytes: Bytes | None = Field(
        default=None, gt=0, description="memory limit of each GPU; null = none"
    )
    unmet: list[Text] = Field(default=[], description="what the machine could not give, in words")


class Phase(Strict):
    name: Name = Field(
        description="start (interpreter and imports), load, features, fit, transfer, predict, ..."
    )
    wall_s: Seconds = Field(description="wall time of the phase, all its visits added up")
    cpu_s: Seconds = Field(description="CPU seconds of the run's main process in the phase")
    peak_memory_bytes: Bytes = Field(description="highest resident size in the phase; 0 where not told")


class Gate(Strict):
    status: Literal["passed", "failed", "reference", "no-reference", "unscored"] = Field(
        description="outcome of the comparison with the reference engine and backend on the same data"
    )
    reference_run: RunId | None = Field(default=None, description="run_id compared with")
    differences: dict[Name, Score] = Field(
        default={}, description="score name -> this run minus the reference"
    )


class Open(BaseModel):
    """Known facts among others, of which anything may be said."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)


class Sizes(Open):
    """What tables read of a bench record's parameters."""

    batch: int = Field(ge=1, lt=1 << 53)
    seq: Count
    lengths: Literal["fixed", "real"]
    scenario: Literal["", "single-stream", "offline", "server"]
    model_hash: str = Field(default="", pattern=r"^[0-9a-f]*$", max_length=64)


class Facts(Open):
    """What tables read of a record's details."""

    ceiling: Score | None = None
    layers: int = Field(default=0, ge=0, le=10**6)


class Verdict(Open):
    """What tables read of LoadGen's verdict."""

    result: Text
    line: Text


def held(model: type[Open], fields: dict[str, Any]) -> dict[str, Any]:
    """`fields`, of which those that `model` knows are as it has them. Raises ValueError."""
    try:
        made = model.model_validate(fields)
    except ValidationError as error:
        raise ValueError(wrong_fields(error)) from error
    return fields | made.model_dump(exclude_unset=True)


class Bench(Strict):
    """What was timed, what it costs at least, and how it was run; of `job: bench` only."""

    batch: Count = Field(ge=1, description="rows (sentences, sessions) a run")
    seq: Count = Field(description="tokens a row, 0 where rows have none; with `packed`, tokens a run")
    lengths: Literal["fixed", "real"] = Field(
        description="rows of `seq` tokens, or as long as real sentences"
    )
    packing: Literal["padded", "sorted", "packed"] = Field(description="how rows of real lengths share a run")
    scenario: Literal["", "single-stream", "offline", "server"] = Field(
        description="MLPerf scenario; empty = timed one run after another"
    )
    inputs: Count = Field(ge=1, description="different batches that the runs rotate through")
    rows: Count = Field(description="rows in the runs of `samples.warm_run`")
    flops: Bytes | None = Field(description="FLOPs of one run; a multiply-add is two")
    bytes_moved: Bytes | None = Field(description="least bytes of one run: weights, inputs, outputs")
    kernels: Count | None = Field(description="kernels or operators in one run, where the backend tells")
    floor_s: Seconds | None = Field(description="max(bytes_moved / bandwidth, flops / peak)")
    bandwidth: Rate = Field(description="bytes a second, measured here")
    peak: Rate | None = Field(
        description="FLOPs a second of a matrix product in this precision, measured here"
    )
    threads: Cores = Field(description="threads of the session")
    affinity: list[Count] = Field(description="cores that the process could use")
    denormals: Literal["flushed", "kept"] = Field(description="whether denormals were flushed to zero")
    checked_runs: Count = Field(description="runs whose outputs were held against the reference's")
    bad_runs: Count = Field(description="of them those that were not finite or not written")
    loadgen: dict[str, Any] | None = Field(default=None, description="LoadGen's own verdict and figures")

    @field_validator("loadgen")
    @classmethod
    def _loadgen(cls, told: dict[str, Any] | None) -> dict[str, Any] | None:
        return told and held(Verdict, told)


class Record(Strict):
    schema_version: Literal[1] = Field(default=1, description="version of this schema")
    schema_minor: Literal[0, 1] = Field(
        default=0,
        description="rules by which the figures were measured: in 1 `wall_s`, `cpu_s` and the peaks are without scoring",
    )
    run_id: RunId = Field(description="unique id of the run")
    created: AwareDatetime = Field(description="UTC time at which the run ended")
    published: bool = Field(
        default=False, description="true for a published figure, which buzzer did not measure"
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
    seed: int = Field(ge=-LARGEST, lt=LARGEST, description="seed of generated data and of training")
    repeat: int = Field(default=0, ge=0, lt=1 << 31, description="number of the repetition, from 0")
    fit_id: Name | None = Field(
        default=None,
        description="the fit that was made or used: device that trained it, and a hash of all that it depends on",
    )
    control: bool = Field(
        default=False,
        description="true for the second run of an A/A pair, which measures noise and is not ranked",
    )
    budget: BudgetFields = Field(description="limits of the run")
    enforcement: Literal["cgroups", "polled", "none"] = Field(
        description="cgroups = by the kernel through BenchExec; polled = by a watcher every 50 ms; none = not started"
    )
    outcome: Outcome = Field(description="ok, or how the run failed")
    message: Text = Field(default="", description="what happened, where the outcome is not ok")
    hint: Text = Field(default="", description="what to do about it")
    phase_reached: Name = Field(default="", description="last phase that began")
    scores: dict[Name, Score] = Field(default={}, description="metric name -> value")
    metric: Name = Field(description="name of the score that ranks")
    gate: Gate = Field(description="comparison with the reference run")
    rows: Count = Field(default=0, description="rows (trips, sentences, ...) predicted")
    wall_s: Seconds = Field(
        description="from the start of the process to the end of the last phase before `score`"
    )
    score_s: Seconds | None = Field(
        default=None,
        description="wall time of phase `score`, outside `wall_s`; null where nothing was scored",
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
        description="peak device memory above what was in use before, by NVML; null where not watched",
    )
    gpu_busy_s: Seconds | None = Field(
        default=None,
        description="seconds of the run in which the GPU was at work, by NVML; null where not watched",
    )
    energy_j: dict[Name, Joules] | None = Field(
        default=None, description="joules by source, `cpu` (RAPL) and `gpu` (NVML); null without a counter"
    )
    overhead_s: Seconds = Field(
        description="the harness's own time for this run: set-up, clock, tear-down, record"
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
        description="CPU seconds that others (processes, interrupts, the hypervisor) took on the run's cores meanwhile",
    )
    page_cache: Literal["warm", "as found"] | None = Field(
        default=None,
        description="warm = every input file was read through just before the run; as found = they are too large for that",
    )
    compiled_caches: Literal["cold", "warm"] | None = Field(
        default=None,
        description="warm = caches of compiled code held something before the run; null = not known",
    )
    versions: dict[Name, Name] = Field(description="Python and library versions")
    git_commit: Name | None = Field(
        description="commit of the code, `+dirty` with local changes; null in an install"
    )
    data_source: Literal["official", "generated"] = Field(description="where the input data came from")
    data_fingerprint: Name = Field(
        description="sha256 over the input files' names and contents; empty where a run was not started for want of data"
    )
    data_rows: dict[Name, Count] = Field(default={}, description="rows by input file")
    notes: list[Text] = Field(
        default=[], description="what a reader must know (stand-in data, random weights, ...)"
    )
    config: dict[str, Any] = Field(description="the task's parameters")
    config_hash: Name = Field(description="sha256 of the parameters, first 12 hex digits")
    command: list[Text] = Field(description="command line that started the suite")
    bench: Bench | None = Field(default=None, description="of job `bench`: sizes, least cost, settings")
    details: dict[str, Any] = Field(default={}, description="task-specific facts (ceilings, sizes, ...)")
    stderr_tail: list[Text] = Field(default=[], description="last lines of the run's stderr, where it failed")
    content_hash: Name = Field(default="", description="sha256 of the record without this field: edits show")

    @property
    def engine_name(self) -> str:
        """The engine, and the cluster that it ran on."""
        return f"{self.engine}, {self.cluster}" if self.cluster else self.engine

    @property
    def disturbed(self) -> float | None:
        """The share of its cores that others took, where it is so much that the run's times are not to be trusted."""
        seconds, cores = self.wall_s + (self.score_s or 0.0), self.budget.cores or self.machine.cores
        if self.others_cpu_s is None or not seconds:
            return None
        share = self.others_cpu_s / (cores * seconds)
        return share if share > DISTURBED and self.others_cpu_s > DISTURBED_S else None

    @property
    def scoring(self) -> Literal["inside", "outside"]:
        """Whether scoring is part of the wall time. Runs that differ in it are never compared."""
        return "outside" if self.schema_minor >= 1 else "inside"

    @property
    def compared(self) -> list[Phase]:
        """The phases that make up `wall_s`."""
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
        check_json(details, finite=False)
        return held(Facts, _finite(details))

    @model_validator(mode="after")
    def _bench_has_sizes(self) -> "Record":
        if self.job != "bench":
            return self
        held(Sizes, self.config)
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


def content_hash(fields: dict[str, Any]) -> str:
    """sha256 of a record's JSON fields without `content_hash` itself."""
    body = {k: v for k, v in fields.items() if k != "content_hash"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write(record: Record, folder: Path) -> Path:
    """Write `record` under `folder` whole or not at all; the path.

    Raises DataError when the folder cannot take it (full disk, no permission).
    """
    fields = record.model_dump(mode="json")
    fields["content_hash"] = content_hash(fields)
    name = "-".join(
        (
            record.created.strftime("%Y%m%dT%H%M%S"),
            record.task,
            record.job,
            record.engine,
            record.backend,
            *((record.precision,) if record.job == "bench" else ()),
            record.run_id[:8],
        )
    )
    path = folder / f"{name}.json"
    write_text(path, json.dumps(fields, indent=1) + "\n")
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises DataError on a full disk or a closed folder."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror}", "free some space or choose another --out"
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Create the folder and try to write there, before anything is measured. Raises DataError where that fails."""
    trial = folder / f".{os.getpid()}.trial"
    write_text(trial, " " * TRIAL_BYTES)
    trial.unlink()


def read(path: Path) -> Record:
    """The record in `path`. Raises DataError, of one printable line, with the wrong fields named."""
    try:
        fields = _json(path.read_text(encoding="utf-8"))
        record = Record.model_validate(fields)
        written = content_hash(fields)
    except OSError as error:
        raise DataError(printable(f"{path}: {error.strerror}")) from error
    except ValidationError as error:
        raise DataError(printable(f"{path}: {wrong_fields(error)}")) from error
    except (ValueError, RecursionError) as error:
        told = "nested too deep" if isinstance(error, RecursionError) else error
        raise DataError(
            printable(f"{path}: not a record: {told}"), "the file is cut or was edited by hand"
        ) from error
    if record.content_hash != written:
        raise DataError(
            printable(f"{path}: content_hash does not match: the record was edited after it was written")
        )
    return record


def wrong_fields(error: ValidationError, most: int = 5) -> str:
    """The first wrong fields and what is wrong with them, in one line."""
    found = error.errors(include_url=False, include_input=False)
    told = [f"{'.'.join(map(str, e['loc'])) or 'record'}: {e['msg']}" for e in found[:most]]
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return "; ".join([*(t if len(t) < 300 else f"{t[:300]}..." for t in told), *more])


def _json(text: str) -> dict[str, Any]:
    """A JSON object that can be written again. Raises ValueError, RecursionError."""
    fields = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_keys_once)
    if not isinstance(fields, dict):
        raise ValueError("the file holds no JSON object")  # noqa: TRY004  of a file, not of an argument
    check_json(fields)
    return fields


def check_json(value: Any, finite: bool = True) -> None:
    """Raises ValueError for a JSON value that is nested too deep, or whose texts and numbers cannot be written or reckoned with."""
    rest = [(value, 1)]
    while rest:
        value, depth = rest.pop()
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
        if isinstance(value, dict):
            rest += [(part, depth + 1) for item in value.items() for part in item]
        elif isinstance(value, list):
            rest += [(part, depth + 1) for part in value]
        elif isinstance(value, str):
            value.encode()  # lone surrogates
        elif finite and isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number beyond all bounds")
        elif isinstance(value, int) and not -LARGEST <= value < LARGEST:
            raise ValueError(f"an integer of {value.bit_length()} bits")


def _finite(value: Any) -> Any:
    """`value` with null for what is no finite number, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key twice in one object")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def paths(sources: Iterable[Path]) -> list[Path]:
    """The record files among files and folders; folders are searched, less hidden files and the folders `local` and `files`
    (submissions)."""
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = (p for p in source.rglob("*.json") if p.is_file() and not p.name.startswith("."))
            found += sorted(
                p for p in inside if not {"local", "files"} & {*p.relative_to(source).parent.parts}
            )
        else:
            found.append(source)
    return found


def read_good(folder: Path) -> list[Record]:
    """Every readable record under `folder`; broken files are for `buzzer check` to tell of."""
    good = []
    for path in paths([folder]) if folder.is_dir() else []:
        with suppress(DataError):
            good.append(read(path))
    return good


def schema() -> dict[str, Any]:
    """The JSON Schema of a record."""
    return Record.model_json_schema()
