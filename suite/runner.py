"""Does one planned run: starts the child under its budget, follows it, and writes the record whatever happens."""

import functools
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import buzzer
from buzzer.errors import DataError
from buzzer.models.job import Data, Job
from buzzer.suite import budget as budgets
from buzzer.suite import child, gate, limits, machine, meter
from buzzer.suite import record as record_of
from buzzer.suite.plan import Run
from buzzer.suite.record import BudgetFields, Gate, Phase, Record

LOOK_S = 0.2  # how often the parent looks at the child's events
TAIL_LINES = 20
Watch = Callable[[str, float], None]  # phase, elapsed seconds


@dataclass
class Story:
    """What the child told in its events file, so far."""

    phases: dict[str, Phase] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    running: str = ""
    running_since_s: float = 0.0
    end: dict[str, Any] | None = None

    def take(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "phase":
                self.running, self.running_since_s = event["name"], event["at_s"]
            case "end":
                self._close(event["name"], event["wall_s"], event["cpu_s"], event["peak_memory_bytes"])
                self.samples.setdefault(event["name"], []).extend(event["laps"] or [event["wall_s"]])
            case _:
                self.end = event

    def _close(self, name: str, wall_s: float, cpu_s: float, peak: int) -> None:
        before = self.phases.get(name, Phase(name=name, wall_s=0, cpu_s=0, peak_memory_bytes=0))
        self.phases[name] = Phase(
            name=name,
            wall_s=before.wall_s + wall_s,
            cpu_s=before.cpu_s + cpu_s,
            peak_memory_bytes=max(before.peak_memory_bytes, peak),
        )

    def cut(self, wall_s: float) -> None:
        """Close the phase in which the run was ended from outside."""
        if self.running:
            self._close(self.running, max(wall_s - self.running_since_s, 0.0), 0.0, 0)


class Events:
    """Reads the growing events file from where it stopped the last time."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self.story = Story()

    def read(self) -> Story:
        with suppress(FileNotFoundError), self._path.open(encoding="utf-8") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith("\n"):
                    break  # the child is in the middle of this line, or died there
                self._offset += len(line.encode())
                self.story.take(json.loads(line))
        return self.story


def cache_folder() -> Path:
    """Where generated data and fitted models are kept: $BUZZER_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BUZZER_CACHE") or Path(base) / "buzzer")


def fit_folder(run: Run, data: Data, cache: Path) -> Path:
    """The folder of what `fit` saves: a name for the task's parameters, data, seed and source code."""
    facts = [run.task.params, data.fingerprint, run.seed, code_hash(run.task.entry)]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return cache / "fits" / f"{run.task.name}-{key}"


@functools.cache
def code_hash(entry: str) -> str:
    """sha256 over the sources beside the task's module: an edited model is trained anew, by the next suite."""
    spec = importlib.util.find_spec(entry.partition(":")[0])
    if spec is None or spec.origin is None:
        raise DataError(f"{entry}: no such module")
    digest = hashlib.sha256()
    for source in sorted(Path(spec.origin).parent.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


def job_of(run: Run, data: Data, work: Path, out: Path) -> Job:
    return Job(
        task=run.task.name,
        engine=run.engine,
        backend=run.backend,
        precision=run.precision,
        device=run.device,
        data=data.folder,
        work=work,
        out=out,
        scale=data.scale,
        seed=run.seed,
        threads=min(run.budget.cores or 10**6, len(budgets.allowed_cores())),
        params=run.task.params,
        workers=run.workers,
        scheduler=run.scheduler,
        gpu_memory_bytes=run.budget.gpu_memory_bytes,
    )


def fit(run: Run, data: Data, cache: Path, watch: Watch) -> Record | None:
    """Train if this fit is not in the cache: its record, or None where it is.

    The task writes into `<folder>.partial`, which stays when the run is ended (checkpoints are taken up again)
    and gets its final name when it is complete.
    """
    done = fit_folder(run, data, cache)
    if done.is_dir():
        return None
    partial = done.with_suffix(".partial")
    make_folder(partial)
    record = execute(run, data, partial, partial, (), watch)
    if record.outcome == "ok":
        partial.rename(done)
    return record


def predict(run: Run, data: Data, cache: Path, out: Path, others: Iterable[Record], watch: Watch) -> Record:
    """The timed run; its files (the submission) stay under `out`/files/<first 8 of run_id>."""
    run_id = uuid.uuid4().hex
    files = out / "files" / run_id[:8]
    make_folder(files)
    try:
        return execute(run, data, fit_folder(run, data, cache), files, others, watch, run_id)
    finally:
        with suppress(OSError):
            files.rmdir()  # only when nothing was written


def make_folder(path: Path) -> None:
    """Create a folder, or say what stands in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot create {path}: {error.strerror}", "free some space or choose another folder"
        ) from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for the child's spec and events. Raises DataError where the system has no room for one."""
    try:
        holder = tempfile.TemporaryDirectory(prefix="buzzer-run-", ignore_cleanup_errors=True)
    except OSError as error:
        raise DataError(f"cannot create a temporary folder: {error.strerror}", "set TMPDIR to one") from error
    with holder as name:
        yield Path(name)


def execute(
    run: Run, data: Data, work: Path, out: Path, others: Iterable[Record], watch: Watch, run_id: str = ""
) -> Record:
    """Run the child under its budget; the record, judged by the gate."""
    began, load_before = time.perf_counter(), machine.busy()
    limiter, gauge = limits.limiter(run.budget), meter.Meter(run.device)

    def look(phase: str, elapsed: float) -> None:
        gauge.look()
        watch(phase, elapsed)

    with temporary_folder() as folder:
        events = Events(folder / "events.jsonl")
        spec = child.spec_of(job_of(run, data, work, out), run.job, run.task.entry, folder / "events.jsonl")
        record_of.write_text(folder / "spec.json", json.dumps(spec))
        command = [sys.executable, "-m", "buzzer.suite.child", str(folder / "spec.json")]
        measured, elapsed = follow(limiter, command, folder / "stderr", run, events, look)
        story, tail = events.read(), stderr_tail(folder / "stderr")
    fields = identity(run, data, run_id or uuid.uuid4().hex) | outcome_fields(story, measured, elapsed, tail)
    fields["notes"] += (story.end or {}).get("notes", [])
    fields |= {
        "enforcement": limiter.enforcement,
        "load_before": load_before,
        "cpu_s": measured.cpu_s,
        "peak_memory_bytes": measured.peak_memory_bytes,
    } | gauge.fields()
    bookkeeping = (story.end or {}).get("overhead_s", 0.0)  # the clock's own, inside the wall time
    fields["overhead_s"] = max(time.perf_counter() - began - fields["wall_s"], 0.0) + bookkeeping
    return gate.judge(Record.model_validate(fields), run.task, others)


def follow(
    limiter: limits.Limiter, command: list[str], stderr: Path, run: Run, events: Events, watch: Watch
) -> tuple[limits.Measured, float]:
    """Wait for the command in a thread while showing its phases; what was measured, and the seconds it took.

    Ctrl-C stops the command; its record then says `interrupted` (see `interrupted`).
    """
    ended: list[limits.Measured] = []
    environment = limits.environment_of(run.budget) | {"PYTHONPATH": python_path()}
    worker = threading.Thread(
        target=lambda: ended.append(limiter.run(command, stderr, environment)), daemon=True
    )
    began = time.perf_counter()
    worker.start()
    while worker.is_alive():
        try:
            worker.join(LOOK_S)
            watch(events.read().running, time.perf_counter() - began)
        except KeyboardInterrupt:
            limiter.stop()
            worker.join()
            ended[:] = [limits.Measured("interrupted", 1, m.cpu_s, m.peak_memory_bytes) for m in ended]
    elapsed = time.perf_counter() - began
    return (ended[0] if ended else limits.Measured("failed", 1, None, None)), elapsed


def python_path() -> str:
    """The child finds the package where the parent did, checkout or install."""
    home = str(Path(buzzer.__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))


def stderr_tail(path: Path) -> list[str]:
    if not path.exists():
        return []
    return path.read_text(errors="replace").splitlines()[-TAIL_LINES:]


def outcome_fields(
    story: Story, measured: limits.Measured, elapsed: float, tail: list[str]
) -> dict[str, Any]:
    """How the run ended, from what the child told and what the limiter saw."""
    end = story.end or {}
    fields: dict[str, Any] = {"phase_reached": story.running, "samples": story.samples}
    if end.get("event") == "done" and not measured.reason:
        fields |= {k: end[k] for k in ("wall_s", "scores", "rows", "details")}
        fields |= {"outcome": "ok", "samples": story.samples | end["samples"]}
        fields["bench"] = fields["details"].pop("bench", None)
    else:
        story.cut(elapsed)
        outcome, message, hint = explain(end, measured, story.running or "start")
        fields |= {"outcome": outcome, "message": message, "hint": hint, "wall_s": elapsed}
        fields |= {"stderr_tail": tail, "details": end.get("details", {})}
    return fields | {"phases": list(story.phases.values())}


def explain(end: dict[str, Any], measured: limits.Measured, phase: str) -> tuple[str, str, str]:
    """Outcome, message and hint of a run that did not finish."""
    match measured.reason:
        case "memory":
            return (
                "host-oom",
                f"over the memory limit in phase {phase}",
                "give it more memory or a smaller --scale",
            )
        case "walltime":
            return "timeout", f"the buzzer went in phase {phase}", "give it more time or a smaller --scale"
        case "interrupted":
            return "error", f"interrupted in phase {phase}", "`--resume` takes the suite up again"
        case "failed":
            return (
                "error",
                "the process could not be started",
                "`buzzer env` shows how limits are enforced here",
            )
    if end.get("event") == "failed":
        return end["outcome"], end["message"], end["hint"]
    if measured.exit_code < 0:
        hint = "signal 9 without a limit reached: the system itself may have run out of memory"
        return "error", f"killed by signal {-measured.exit_code} in phase {phase}", hint
    return (
        "error",
        f"the process ended with exit code {measured.exit_code} in phase {phase}",
        "see stderr_tail",
    )


def interrupted(record: Record) -> bool:
    """Whether the user stopped this run, so that the suite must not go on."""
    return record.outcome == "error" and record.message.startswith("interrupted ")


def identity(run: Run, data: Data, run_id: str) -> dict[str, Any]:
    """The fields of a record that are known before the run."""
    limit = run.budget.as_dict() | {"unmet": budgets.unmet(run.budget)}
    return {
        "run_id": run_id,
        "created": datetime.now(UTC),
        "task": run.task.name,
        "job": run.job,
        "engine": run.engine,
        "backend": run.backend,
        "precision": run.precision,
        "device": run.device,
        "scale": data.scale,
        "seed": run.seed,
        "repeat": run.repeat,
        "control": run.control,
        "cluster": run.cluster,
        "budget": BudgetFields.model_validate(limit),
        "metric": run.task.metric,
        "gate": Gate(status="unscored"),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "git_commit": machine.git_commit(),
        "data_source": data.source,
        "data_fingerprint": data.fingerprint,
        "data_rows": dict(data.rows),
        "notes": list(data.notes),
        "config": run.task.params,
        "config_hash": run.task.config_hash,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def not_started(run: Run, data: Data, outcome: str, message: str, hint: str) -> Record:
    """The record of a run that could not begin (its fit failed, say)."""
    return Record.model_validate(
        identity(run, data, uuid.uuid4().hex)
        | {
            "enforcement": "none",
            "outcome": outcome,
            "message": message,
            "hint": hint,
            "wall_s": 0.0,
            "cpu_s": None,
            "peak_memory_bytes": None,
            "overhead_s": 0.0,
            "phases": [],
            "samples": {},
            "load_before": machine.busy(),
        }
    )
