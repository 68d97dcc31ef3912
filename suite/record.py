"""The result record: one JSON a run, schema version 1. docs/records.md documents every field."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from buzzer.errors import DataError
from buzzer.models.job import SCORE

SCHEMA_VERSION = 1
SCHEMA_MINOR = 1  # of new records; docs/records.md lists what each minor changed
TRIAL_BYTES = 1 << 16  # more than a record has
PHASE_TOLERANCE = 0.01  # share of the wall time by which the phases may miss it
# From which share of its cores and CPU seconds on others disturb a run: with an idle machine 0.03 and 0.04 were the most of
# 0.3 s runs, with a neighbour on the same core 0.6 and 0.3 the least.
DISTURBED, DISTURBED_S = 0.05, 0.1
PHASE_SLACK_S = 0.02  # the kernel tells a process's start to 10 ms only

Outcome = Literal["ok", "timeout", "host-oom", "device-oom", "wrong", "error", "unsupported"]
Seconds = Annotated[float, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class BudgetFields(Strict):
    name: str = Field(description="name or written-out form, as asked for")
    cores: int | None = Field(description="CPU cores; null = all of the machine's")
    memory_bytes: Bytes | None = Field(description="host memory limit; null = none")
    time_s: Seconds | None = Field(description="wall-time limit; null = none")
    gpu_memory_bytes: Bytes | None = Field(default=None, description="memory limit of each GPU; null = none")
    unmet: list[str] = Field(default=[], description="what the machine could not give, in words")


class Phase(Strict):
    name: str = Field(
        description="start (interpreter and imports), load, features, fit, transfer, predict, ..."
    )
    wall_s: Seconds = Field(description="wall time of the phase, all its visits added up")
    cpu_s: Seconds = Field(description="CPU seconds of the run's main process in the phase")
    peak_memory_bytes: Bytes = Field(description="highest resident size in the phase; 0 where not told")


class Gate(Strict):
    status: Literal["passed", "failed", "reference", "no-reference", "unscored"] = Field(
        description="outcome of the comparison with the reference engine and backend on the same data"
    )
    reference_run: str | None = Field(default=None, description="run_id compared with")
    differences: dict[str, float] = Field(
        default={}, description="score name -> this run minus the reference"
    )


class Bench(Strict):
    """What was timed, what it costs at least, and how it was run; of `job: bench` only."""

    batch: int = Field(ge=1, description="rows (sentences, sessions) a run")
    seq: int = Field(ge=0, description="tokens a row, 0 where rows have none; with `packed`, tokens a run")
    lengths: Literal["fixed", "real"] = Field(
        description="rows of `seq` tokens, or as long as real sentences"
    )
    packing: Literal["padded", "sorted", "packed"] = Field(description="how rows of real lengths share a run")
    scenario: Literal["", "single-stream", "offline", "server"] = Field(
        description="MLPerf scenario; empty = timed one run after another"
    )
    inputs: int = Field(ge=1, description="different batches that the runs rotate through")
    rows: int = Field(ge=0, description="rows in the runs of `samples.warm_run`")
    flops: int | None = Field(description="FLOPs of one run; a multiply-add is two")
    bytes_moved: Bytes | None = Field(description="least bytes of one run: weights, inputs, outputs")
    kernels: int | None = Field(description="kernels or operators in one run, where the backend tells")
    floor_s: Seconds | None = Field(description="max(bytes_moved / bandwidth, flops / peak)")
    bandwidth: float = Field(gt=0, description="bytes a second, measured here")
    peak: float | None = Field(
        description="FLOPs a second of a matrix product in this precision, measured here"
    )
    threads: int = Field(ge=1, description="threads of the session")
    affinity: list[int] = Field(description="cores that the process could use")
    denormals: Literal["flushed", "kept"] = Field(description="whether denormals were flushed to zero")
    checked_runs: int = Field(ge=0, description="runs whose outputs were held against the reference's")
    bad_runs: int = Field(ge=0, description="of them those that were not finite or not written")
    loadgen: dict[str, Any] | None = Field(default=None, description="LoadGen's own verdict and figures")


class Record(Strict):
    schema_version: Literal[1] = Field(default=1, description="version of this schema")
    schema_minor: Literal[0, 1] = Field(
        default=0,
        description="rules by which the figures were measured: in 1 `wall_s`, `cpu_s` and the peaks are without scoring",
    )
    run_id: str = Field(description="unique id of the run")
    created: datetime = Field(description="UTC time at which the run ended")
    published: bool = Field(
        default=False, description="true for a published figure, which buzzer did not measure"
    )
    task: str = Field(description="task name, as `buzzer list` shows it")
    job: Literal["fit", "predict", "bench"] = Field(
        description="`fit` trains and saves; `predict` is the timed job; `bench` times one model alone"
    )
    engine: str = Field(description="feature engine; `none` where a task has no feature frames")
    backend: str = Field(description="inference backend")
    precision: str = Field(description="fp32, bf16, int8, ...")
    device: Literal["cpu", "cuda"] = Field(description="where features and models ran")
    cluster: str = Field(
        default="",
        description="`N workers` of a local Dask cluster, or the address of its scheduler; empty = one process",
    )
    scale: float = Field(gt=0, description="share of the official data size")
    seed: int = Field(description="seed of generated data and of training")
    repeat: int = Field(default=0, ge=0, description="number of the repetition, from 0")
    fit_id: str | None = Field(
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
    message: str = Field(default="", description="what happened, where the outcome is not ok")
    hint: str = Field(default="", description="what to do about it")
    phase_reached: str = Field(default="", description="last phase that began")
    scores: dict[str, float] = Field(default={}, description="metric name -> value")
    metric: str = Field(description="name of the score that ranks")
    gate: Gate = Field(description="comparison with the reference run")
    rows: int = Field(default=0, ge=0, description="rows (trips, sentences, ...) predicted")
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
    energy_j: dict[str, float] | None = Field(
        default=None, description="joules by source, `cpu` (RAPL) and `gpu` (NVML); null without a counter"
    )
    overhead_s: Seconds = Field(
        description="the harness's own time for this run: set-up, clock, tear-down, record"
    )
    phases: list[Phase] = Field(
        description="in order of first visit; those before `score` add up to wall_s within 1 %"
    )
    samples: dict[str, list[Seconds]] = Field(
        description="phase name -> wall time of each lap (batch, chunk)"
    )
    machine: dict[str, Any] = Field(description="cpu, simd, cores, memory_bytes, system, arch, gpus")
    load_before: float = Field(description="load average of the machine just before the run")
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
    versions: dict[str, str] = Field(description="Python and library versions")
    git_commit: str | None = Field(
        description="commit of the code, `+dirty` with local changes; null in an install"
    )
    data_source: Literal["official", "generated"] = Field(description="where the input data came from")
    data_fingerprint: str = Field(description="sha256 over the input files' names and contents")
    data_rows: dict[str, int] = Field(default={}, description="rows by input file")
    notes: list[str] = Field(
        default=[], description="what a reader must know (stand-in data, random weights, ...)"
    )
    config: dict[str, Any] = Field(description="the task's parameters")
    config_hash: str = Field(description="sha256 of the parameters, first 12 hex digits")
    command: list[str] = Field(description="command line that started the suite")
    bench: Bench | None = Field(default=None, description="of job `bench`: sizes, least cost, settings")
    details: dict[str, Any] = Field(default={}, description="task-specific facts (ceilings, sizes, ...)")
    stderr_tail: list[str] = Field(default=[], description="last lines of the run's stderr, where it failed")
    content_hash: str = Field(default="", description="sha256 of the record without this field: edits show")

    @property
    def engine_name(self) -> str:
        """The engine, and the cluster that it ran on."""
        return f"{self.engine}, {self.cluster}" if self.cluster else self.engine

    @property
    def disturbed(self) -> float | None:
        """The share of its cores that others took, where it is so much that the run's times are not to be trusted."""
        seconds, cores = self.wall_s + (self.score_s or 0.0), self.budget.cores or self.machine.get("cores")
        if self.others_cpu_s is None or not isinstance(cores, int) or cores < 1 or not seconds:
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
    """The record in `path`. Raises DataError with every wrong field named."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise DataError(f"{path}: not a record: the file holds no JSON object")
        record = Record.model_validate(fields)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON: {error}", "the file is cut or was edited by hand") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'record'}: {e['msg']}" for e in error.errors())
        raise DataError(f"{path}: {wrong}") from error
    if record.content_hash != content_hash(fields):
        raise DataError(f"{path}: content_hash does not match: the record was edited after it was written")
    return record


def paths(sources: Iterable[Path]) -> list[Path]:
    """The record files among files and folders; folders are searched, less hidden files and the folders `local` and `files`
    (submissions)."""
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = (p for p in source.rglob("*.json") if not p.name.startswith("."))
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
