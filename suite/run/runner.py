"""Does one planned run: starts the child under its budget, follows it, and writes the record whatever happens."""

import json
import math
import os
import platform
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import buzzer
from buzzer import caches, locks
from buzzer.errors import DataError
from buzzer.models.api.context import SCORE, Data, RunContext
from buzzer.suite import budget as budgets
from buzzer.suite.budget import Budget
from buzzer.suite.records import gate, machine
from buzzer.suite.records import record as record_of
from buzzer.suite.records.record import SCHEMA_MINOR, BudgetFields, Gate, Record
from buzzer.suite.run import counters, fits, inputs, limits, manifest, reaper, worker
from buzzer.suite.run.plan import Run
from buzzer.suite.run.progress import Events, RunProgress

EVENTS = "events.jsonl"
LOOK_S = 0.2  # how often the parent looks at the child's events
GIVE_UP_S = 30.0  # after which a process that cannot be killed (it hangs in the kernel) is left alone
LINGER_S = 30.0  # that a process may take to go after it has told its end
TAIL_LINES, TAIL_BYTES, LINE_CHARS = 60, 1 << 16, 800  # a traceback of nested groups is long
FLOOD_BYTES = 1 << 26  # that a run's stderr may take on disk
RESUME = "`--resume` of `buzzer run` and `buzzer compare` skips what is done"
MORE_TIME = "give it more time or a smaller --scale"
INTERRUPTED = "interrupted"  # in the details of a run that the user stopped
ProgressCallback = Callable[[str, float], None]  # phase, elapsed seconds


def job_of(run: Run, data: Data, work: Path, out: Path) -> RunContext:
    return RunContext(
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


def fit(run: Run, data: Data, cache: Path, watch: ProgressCallback) -> Record | None:
    """Train if this fit is not in the cache, or is damaged there: its record, or None where it is.

    The task writes into `<folder>.partial`, which stays when the run is ended (checkpoints are taken up again)
    and gets its final name when it is complete. Another process that wants the same fit waits for this one.
    """
    done, fit_id = fits.folder(run, data, cache), fits.fit_id(run, data)
    if not manifest.problem(done):
        return None
    with ExitStack() as holding:
        # In this order: a run within a run takes the second lock only, and its owner must not wait for the outer run.
        wanted = (alone(cache, watch), lock(beside(done, "lock"), watch))
        if not all(entered(holding, one) for one in wanted):
            return stopped_waiting(run, data, fit_id)
        problem = manifest.problem(done)  # another process may have made it meanwhile
        if not problem:
            return None
        if os.path.lexists(done):
            caches.discard(done, problem)
        partial = beside(done, "partial")
        make_folder(partial)
        record = execute(run, data, partial, partial, (), watch, fit_id=fit_id)
        return kept(record, partial, done) if record.outcome == "ok" else record


def beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def kept(record: Record, partial: Path, done: Path) -> Record:
    """The record of a fit, once what it wrote has its manifest and its final name."""
    try:
        manifest.seal(partial)
        partial.rename(done)
    except OSError as error:
        message = f"the fit cannot be kept as {done}: {error.strerror}"
        hint = f"free some space or set {caches.HOME} to another folder"
        return record.model_copy(update={"outcome": "error", "message": message, "hint": hint})
    return record


def predict(
    run: Run, data: Data, cache: Path, out: Path, others: Iterable[Record], watch: ProgressCallback
) -> Record:
    """The timed run; its files (the submission) stay under `out`/files/<first 8 of run_id>.

    A fit that is damaged, or that the run changes, is an `error`.
    """
    run_id, fitted, fit_id = uuid.uuid4().hex, fits.folder(run, data, cache), fits.fit_id(run, data)
    with ExitStack() as holding:
        if not entered(holding, alone(cache, watch)):
            return stopped_waiting(run, data, fit_id)
        if problem := manifest.problem(fitted):
            message = f"the fit {fitted} cannot be used: {problem}"
            return not_started(run, data, "error", message, "run it again: the fit is made anew", fit_id)
        files = out / "files" / run_id[:8]
        make_folder(files)
        before = manifest.state(fitted)
        try:
            with reaper.swept(files):
                reads = (data.folder, fitted)
                record = execute(run, data, fitted, files, others, watch, run_id, fit_id, reads)
        finally:
            with suppress(OSError):
                files.rmdir()  # only when nothing was written
        changed = manifest.changes(before, manifest.state(fitted))
        return fit_changed(record, changed) if changed and not interrupted(record) else record


def fit_changed(record: Record, names: Sequence[str]) -> Record:
    """The record of a run that wrote where the fit is, which other runs use."""
    update = {
        "outcome": "error",
        "message": f"the run changed the fit: {', '.join(names[:3])}",
        "hint": "`predict` may only read what `fit` saved; the fit is made anew by the next call",
        "scores": {},
        "gate": Gate(status="unscored"),
    }
    return record.model_copy(update=update)


def bench(run: Run, data: Data, cache: Path, work: Path, out: Path, watch: ProgressCallback) -> Record:
    """A run of `buzzer bench`, which has no fit in the cache."""
    with ExitStack() as holding:
        if not entered(holding, alone(cache, watch)):
            return stopped_waiting(run, data, None)
        return execute(run, data, work, out, (), watch)


def alone(cache: Path, watch: ProgressCallback) -> AbstractContextManager[None]:
    """No other run that uses this cache is measured on this machine meanwhile. A run started by a run is part of it."""
    if reaper.VARIABLE in os.environ:
        return nullcontext()
    return lock(cache / f"measuring-{platform.node()}.lock", watch)


def lock(path: Path, watch: ProgressCallback) -> AbstractContextManager[None]:
    return locks.held(path, lambda message: watch(message, 0.0))


def entered(holding: ExitStack, lock: AbstractContextManager[None]) -> bool:
    """Whether `holding` has the lock; not where the user has stopped the waiting."""
    try:
        holding.enter_context(lock)
    except KeyboardInterrupt:
        return False
    return True


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
    with holder as name, reaper.swept(Path(name)) as folder:
        yield folder


def execute(
    run: Run,
    data: Data,
    work: Path,
    out: Path,
    others: Iterable[Record],
    watch: ProgressCallback,
    run_id: str = "",
    fit_id: str | None = None,
    reads: Sequence[Path] = (),
) -> Record:
    """Run the child under its budget; the record, judged by the gate. `reads` are the folders of its inputs."""
    began, load_before, compiled = time.perf_counter(), machine.load_average(), caches.state()
    before = inputs.state(reads)
    warm = inputs.warm(before)
    limiter, gauge = limits.limiter(run.budget), counters.Meter(run.device)

    def look(phase: str, elapsed: float) -> None:
        if phase == SCORE:
            gauge.stop()
        else:
            gauge.look()
        watch(phase, elapsed)

    with temporary_folder() as folder, Events(folder / EVENTS) as events:
        spec = worker.spec_of(job_of(run, data, work, out), run.job, run.task.entry, folder / EVENTS)
        record_of.write_text(folder / "spec.json", json.dumps(spec))
        command = [sys.executable, "-m", "buzzer.suite.run.worker", str(folder / "spec.json")]
        neighbours, own_cpu_s = counters.Neighbours(cores_of(run.budget)), time.process_time()
        measured, age = follow(limiter, command, folder / "stderr", run, events, look)
        beside_s, taken_s = time.process_time() - own_cpu_s, neighbours.cpu_s(measured.cpu_s)
        story, tail = events.read(), stderr_tail(folder / "stderr")
    known = identity(run, data, run_id or uuid.uuid4().hex, fit_id) | {
        "enforcement": limiter.enforcement,
        "load_before": load_before,
        "compiled_caches": compiled,
        "others_cpu_s": None if run.scheduler else taken_s,  # a cluster's workers are not others
        "page_cache": ("warm" if warm else "as found") if before else None,
        "peak_memory_bytes": measured.peak_memory_bytes,
    }
    doubt = false_claim(story, measured, out) or touched(before, data.folder)
    if measured.reason == "interrupted":  # which it stays, so that the suite ends
        doubt = ""
    fields = known | gauge.stop() | outcome_fields(story, measured, age, tail, run.budget, doubt)
    fields["notes"] = [*known["notes"], *fields["notes"]]
    fields["cpu_s"] = compared_cpu_s(measured, story)
    bookkeeping = (story.end or {}).get("overhead_s", 0.0)  # the clock's own, inside the wall time
    spent = fields["wall_s"] + (fields["score_s"] or 0.0)
    fields["overhead_s"] = max(time.perf_counter() - began - spent, 0.0) + bookkeeping + beside_s
    return gate.judge(validated(fields, known, age), run.task, others)


def false_claim(story: RunProgress, measured: limits.Measured, out: Path) -> str:
    """What the run told of itself that the harness saw otherwise, or ""."""
    if measured.started_s is None:
        return ""
    changed = story.changed_later(out)
    late = f"that scoring had begun; {', '.join(changed)} was written afterwards" if changed else ""
    told = story.contradiction(measured.started_s) or late
    return told and f"the run told {told}"


def touched(before: inputs.State, folder: Path) -> str:
    """That the run changed the data of `folder`, which the next ones read too, or ""; the fit is watched by `predict`."""
    if not before:
        return ""
    own = {path: facts for path, facts in before.items() if path.is_relative_to(folder)}
    changed = inputs.changed(own, [folder])
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"the run changed its inputs: {', '.join(changed[:3])}{more}" if changed else ""


def cores_of(budget: Budget) -> list[int]:
    """The cores that a run under this budget has."""
    return limits.usable_cores(budget) or budgets.allowed_cores()


def validated(fields: dict[str, Any], known: dict[str, Any], age: float) -> Record:
    """The record; where what the child told is no part of one, an `error` that says so in its place."""
    try:
        return Record.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        told = {
            "outcome": "error",
            "message": f"what the run told is no valid record: {where}: {first['msg']}",
        }
        empty: dict[str, Any] = {"cpu_s": None, "overhead_s": 0.0, "phases": [], "samples": {}}
        return Record.model_validate(
            known | empty | told | {"wall_s": age, "stderr_tail": fields.get("stderr_tail", [])}
        )


def compared_cpu_s(measured: limits.Measured, story: RunProgress) -> float | None:
    """CPU seconds of all processes, less those of the main process while it scored."""
    if measured.cpu_s is None or SCORE not in story.phases:
        return measured.cpu_s
    return max(measured.cpu_s - story.phases[SCORE].cpu_s, 0.0)


def follow(
    limiter: limits.Limiter,
    command: list[str],
    stderr: Path,
    run: Run,
    events: Events,
    watch: ProgressCallback,
) -> tuple[limits.Measured, float]:
    """Wait for the command in a thread while showing its phases; what was measured, and the seconds it took.

    Ends a run that is over its time: over the budget's before `score`, or while scoring over the time that it may take.
    Ctrl-C, however often, stops the command; its record then says `interrupted` (see `interrupted`).
    """
    measured, failed, over = list[limits.Measured](), list[str](), threading.Event()
    environment = limits.environment_of(run.budget) | {"PYTHONPATH": python_path(), "PYTHONSAFEPATH": "1"}

    def work() -> None:
        try:
            measured.append(limiter.run(command, stderr, environment))
        except BaseException as error:  # noqa: BLE001  BenchExec ends the program where a group is missing
            failed.append(f"{type(error).__name__}: {error}")
        finally:
            over.set()

    reason, began, stopping = "", time.perf_counter(), 0.0
    threading.Thread(target=work, daemon=True).start()
    while True:
        try:
            if reason:
                limiter.stop()
                stopping = stopping or time.perf_counter()
            if over.wait(LOOK_S) or (stopping and time.perf_counter() - stopping > GIVE_UP_S):
                break
            story, elapsed = events.read(), time.perf_counter() - began
            if story.scoring:
                limiter.keep_peak()
            watch(story.running, elapsed)
            cut_flood(stderr)
            reason = reason or over_time(story, story.age_s(elapsed), run.budget)
        except KeyboardInterrupt:
            reason = "interrupted"
        except BaseException:
            limiter.stop()
            raise
    age = events.read().age_s(time.perf_counter() - began)
    found = measured[0] if measured else limits.Measured("failed", 1, None, None, "".join(failed))
    return replace(found, reason=reason or found.reason), age


def over_time(story: RunProgress, age: float, budget: Budget) -> str:
    """Why a run must be ended now: `walltime`, `scoring`, `lingering`, or ""."""
    if story.end is not None:
        late = time.perf_counter() - (story.ended_s or time.perf_counter())
        return "lingering" if late > LINGER_S else ""
    if budget.time_s is None:
        return ""
    if not story.scoring:
        return "walltime" if age > budget.time_s else ""
    return "scoring" if age - story.running_since_s > limits.scoring_s(budget) else ""


def python_path() -> str:
    """The child finds the package where the parent did, checkout or install."""
    home = str(Path(buzzer.__file__).resolve().parents[1])
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([home, *filter(None, own)])  # an empty entry would be the working folder


def cut_flood(path: Path) -> None:
    """Give back the disk that a run's stderr takes, where that is much; the file then has a hole, and goes on at its end."""
    with suppress(OSError):
        if path.stat().st_blocks * 512 > FLOOD_BYTES:
            os.truncate(path, 0)


def stderr_tail(path: Path) -> list[str]:
    """The last lines of what the run wrote there, long ones cut."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(-min(file.seek(0, os.SEEK_END), TAIL_BYTES), os.SEEK_END)
        lines = file.read().lstrip(b"\0").decode(errors="replace").splitlines()
    return [line[:LINE_CHARS] for line in lines[-TAIL_LINES:]]


def outcome_fields(
    story: RunProgress,
    measured: limits.Measured,
    age: float,
    tail: list[str],
    budget: Budget,
    doubt: str = "",
) -> dict[str, Any]:
    """How the run ended, from what the child told and what the limiter saw; `doubt` is why the child is not believed."""
    end = story.end or {}
    fields: dict[str, Any] = {"phase_reached": story.running, "samples": story.samples, "notes": []}
    if doubt:
        hint = "a task must leave the harness's clock and files, its inputs and what it has handed in as they are"
        fields |= {"outcome": "error", "message": doubt, "hint": hint, "wall_s": age}
        return fields | {"samples": {}, "phases": [], "score_s": None, "stderr_tail": tail}
    if story.done and measured.reason in ("", "walltime", "scoring"):
        fields |= {k: end[k] for k in ("wall_s", "rows", "details", "notes")}
        fields |= {"outcome": "ok", "samples": story.samples | end["samples"]}
        fields["bench"] = fields["details"].pop("bench", None)
        fields |= finite(end["scores"]) | late(end["wall_s"], budget)
    else:
        story.cut(age)
        outcome, message, hint = explain(story, measured, budget)
        wall_s = story.running_since_s if story.scoring else age
        fields |= {"outcome": outcome, "message": message, "hint": hint, "wall_s": wall_s}
        fields |= {"stderr_tail": tail, "details": end.get("details", {})}
        if measured.reason == "interrupted":
            fields["details"] = {INTERRUPTED: True}
    score = story.phases.get(SCORE)
    return fields | {"phases": list(story.phases.values()), "score_s": score and score.wall_s}


def finite(scores: dict[str, float]) -> dict[str, Any]:
    """The scores that are numbers; where one is not, the run is `wrong`."""
    bad = sorted(
        name for name, value in scores.items() if isinstance(value, float) and not math.isfinite(value)
    )
    fields: dict[str, Any] = {"scores": {k: v for k, v in scores.items() if k not in bad}}
    if bad:
        told = ", ".join(f"{name} is {scores[name]}" for name in bad)
        fields |= {"outcome": "wrong", "message": f"no finite score: {told}"}
        fields["hint"] = (
            "is a metric not defined on these data (one class only), or did the model predict no number?"
        )
    return fields


def late(wall_s: float, budget: Budget) -> dict[str, Any]:
    """That the job ended after the buzzer, by however little."""
    if budget.time_s is None or wall_s <= budget.time_s:
        return {}
    message = f"the buzzer went: the job took {wall_s:.2f} s, the budget has {budget.time_s:g} s"
    return {"outcome": "timeout", "message": message, "hint": MORE_TIME}


def explain(story: RunProgress, measured: limits.Measured, budget: Budget) -> tuple[str, str, str]:
    """Outcome, message and hint of a run that did not finish."""
    end, phase = story.end or {}, story.running or "start"
    match measured.reason:
        case "memory":
            message = f"over the memory limit in phase {phase}"
            return "host-oom", message, "give it more memory or a smaller --scale"
        case "walltime":
            return "timeout", f"the buzzer went in phase {phase}", MORE_TIME
        case "scoring":
            message = f"scoring took longer than {limits.scoring_s(budget):g} s"
            return "error", message, "the job itself had ended; `buzzer data score` scores a submission"
        case "lingering":
            message = f"the process went on for {LINGER_S:g} s after it had told its end"
            return "error", message, "does the task leave threads or processes behind?"
        case "cores":
            message = f"used cores outside the budget's in phase {phase}"
            return "error", message, "does the task or a library set its own affinity?"
        case "interrupted":
            return "error", f"interrupted in phase {phase}", RESUME
        case "failed":
            what = "started" if story.born_s is None else "measured"
            message = ": ".join(filter(None, [f"the process could not be {what}", measured.error]))
            return "error", message, "`buzzer env` shows how limits are enforced here"
    if story.broken is not None:
        hint = "only the harness may write there; does the task write to files that it did not open?"
        told = "a line that is no event, or that contradicts those before it"
        return "error", f"the run's events file holds {told}: {story.broken!r}", hint
    if end.get("event") == "failed":
        return end["outcome"], end["message"], end["hint"]
    if measured.exit_code < 0:
        hint = "signal 9 without a limit reached: the system itself may have run out of memory"
        return "error", f"killed by signal {-measured.exit_code} in phase {phase}", hint
    message = f"the process ended with exit code {measured.exit_code} in phase {phase}"
    return "error", message, "see stderr_tail"


def interrupted(record: Record) -> bool:
    """Whether the user stopped this run, so that the suite must not go on."""
    return record.outcome == "error" and record.details.get(INTERRUPTED) is True


def identity(run: Run, data: Data, run_id: str, fit_id: str | None) -> dict[str, Any]:
    """The fields of a record that are known before the run."""
    limit = run.budget.as_dict() | {"unmet": budgets.unmet(run.budget)}
    return {
        "schema_minor": SCHEMA_MINOR,
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
        "fit_id": fit_id,
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


def not_started(
    run: Run, data: Data, outcome: str, message: str, hint: str, fit_id: str | None = None
) -> Record:
    """The record of a run that could not begin (its fit failed, say)."""
    return Record.model_validate(
        identity(run, data, uuid.uuid4().hex, fit_id)
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
            "load_before": machine.load_average(),
        }
    )


def stopped_waiting(run: Run, data: Data, fit_id: str | None) -> Record:
    """The record of a run that the user stopped before it could begin."""
    message = "interrupted while it waited for another process"
    record = not_started(run, data, "error", message, RESUME, fit_id)
    return record.model_copy(update={"details": {INTERRUPTED: True}})
