"""Makes the record of a run from what the run reported and what the harness measured.

What a run reports is not trusted. If it is not valid in a record, the record's outcome is `error`.
"""

import math
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from buzzer.models.api.context import SCORE, BenchResult, Data, Work
from buzzer.suite import budget as budgets
from buzzer.suite.budget import Budget
from buzzer.suite.records import checks, machine
from buzzer.suite.records.schema import SCHEMA_MINOR, BudgetFields, Gate, Phase, Record
from buzzer.suite.run import limits
from buzzer.suite.run.counters import Readings
from buzzer.suite.run.events import Done, Failed
from buzzer.suite.run.limits import Enforcement, Measured, Reason
from buzzer.suite.run.plan import Run
from buzzer.suite.run.progress import RunProgress

INTERRUPTED = "interrupted"  # key in the details of the record of a run that the user stopped
RESUME = "`--resume` skips the runs that have a record"
MORE_TIME = "give it more time or a smaller --scale"
RESULT = "scores and rows are those of the Result that `predict` returns; `metric` in the task's descriptor names a score"
CRASHED = "a library crashed: try another --engine or --backend, or another version of the library"
STOPPED = "another program stopped it: run it again"
SIGNALS: dict[int, str] = {
    signal.SIGKILL: "signal 9 without a limit reached: the system itself may have run out of memory",
    **dict.fromkeys((signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV), CRASHED),
}
NOT_RUN, NO_READINGS = Measured(Reason.FAILED, 1, None, None), Readings()


@dataclass(frozen=True)
class Usage:
    """What the harness measured during one run. The defaults are for a run that was not started."""

    load_before: float  # load average of the machine before the run
    process: Measured = NOT_RUN
    age_s: float = 0.0  # from the start of the process to its end
    enforcement: Enforcement = "none"
    counters: Readings = NO_READINGS
    others_cpu_s: float | None = None  # CPU seconds that other processes used on the run's cores
    page_cache: str | None = None  # "warm" or "as found"; None for a run without input files
    compiled_caches: str | None = None  # "cold" or "warm" before the run
    stderr_tail: Sequence[str] = ()
    temporary_full: bool = False  # whether the folder of temporary files had no space left when the run ended
    began_s: float = 0.0  # time.perf_counter() when the harness began to prepare the run
    harness_cpu_s: float = 0.0  # CPU seconds of the harness during the run


@dataclass(frozen=True)
class Ending:
    """The fields of a record that depend on what the run reported, by the same names."""

    outcome: str
    message: str = ""
    hint: str = ""
    wall_s: float = 0.0
    score_s: float | None = None
    cpu_s: float | None = None
    overhead_s: float = 0.0
    phase_reached: str = ""
    phases: Sequence[Phase] = ()
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    bench: BenchResult | None = None
    work: Work | None = None
    stderr_tail: Sequence[str] = ()


def build(
    run: Run,
    data: Data,
    progress: RunProgress,
    usage: Usage,
    *,
    run_id: str,
    fit_id: str | None,
    distrust: str = "",
) -> Record:
    """The record of a run that was started. An `ok` report with scores that `buzzer check` would refuse is an `error`.

    distrust: why the report is not accepted; "" if it is.
    """
    ending = ending_of(progress, usage, run.budget, distrust)
    spent_s = ending.wall_s + (ending.score_s or 0.0)
    bookkeeping_s = progress.end.overhead_s if isinstance(progress.end, Done) else 0.0  # inside the wall time
    overhead_s = max(time.perf_counter() - usage.began_s - spent_s, 0.0) + bookkeeping_s + usage.harness_cpu_s
    ending = replace(ending, cpu_s=compared_cpu_s(usage.process, progress), overhead_s=overhead_s)
    try:
        record = assemble(run, data, usage, ending, run_id, fit_id)
        if ending.outcome != "ok" or not (problems := checks.scores(record)):
            return record
        ending = replace(ending, outcome="error", message=problems[0], hint=RESULT, scores={})
        return assemble(run, data, usage, ending, run_id, fit_id)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        message = f"what the run reported is not a valid record: {where}: {first['msg']}"
        ending = Ending("error", message, wall_s=usage.age_s, stderr_tail=ending.stderr_tail)
        return assemble(run, data, replace(usage, counters=NO_READINGS), ending, run_id, fit_id)


def assemble(run: Run, data: Data, usage: Usage, ending: Ending, run_id: str, fit_id: str | None) -> Record:
    """The record of a run. Raises pydantic's ValidationError for values that a record cannot have."""
    limit = run.budget.as_dict() | {"unmet": budgets.unmet(run.budget)}
    return Record.model_validate(
        vars(ending)
        | {
            "notes": [*data.notes, *ending.notes],
            "bench": ending.bench and asdict(ending.bench),
            "work": ending.work and asdict(ending.work),
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
            "train_scale": data.train_scale,
            "seed": run.seed,
            "repeat": run.repeat,
            "fit_id": fit_id,
            "control": run.control,
            "cluster": run.cluster,
            "budget": BudgetFields.model_validate(limit),
            "enforcement": usage.enforcement,
            "metric": run.task.metric,
            "gate": Gate(status="unscored"),
            "peak_memory_bytes": usage.process.peak_memory_bytes,
            **vars(usage.counters),
            "machine": machine.machine(),
            "load_before": usage.load_before,
            "others_cpu_s": usage.others_cpu_s,
            "page_cache": usage.page_cache,
            "compiled_caches": usage.compiled_caches,
            "versions": machine.versions(),
            "git_commit": machine.git_commit(),
            "data_source": data.source,
            "data_fingerprint": data.fingerprint,
            "data_rows": dict(data.rows),
            "config": run.task.params,
            "config_hash": run.task.config_hash,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        }
    )


def ending_of(progress: RunProgress, usage: Usage, budget: Budget, distrust: str = "") -> Ending:
    """How a run ended, by its own report and by the limiter's."""
    common = Ending("error", wall_s=usage.age_s, phase_reached=progress.running)
    if distrust:
        hint = (
            "nothing may change the harness's clock and files, a run's inputs (also not by a hard link to them), "
            "or a submission after scoring has begun"
        )
        return replace(common, message=distrust, hint=hint, stderr_tail=usage.stderr_tail)
    reason = usage.process.reason
    if progress.done is not None and reason in (Reason.SELF, Reason.TIME, Reason.SCORING):
        ending = finished(common, progress, progress.done, budget)
    else:
        progress.close_phase(usage.age_s)
        ending = unfinished(common, progress, usage, budget)
    score = progress.phases.get(SCORE)
    return replace(
        ending, phases=[*progress.phases.values()], score_s=None if score is None else score.wall_s
    )


def finished(common: Ending, progress: RunProgress, done: Done, budget: Budget) -> Ending:
    """The ending of a run that did all its work: `ok`, `wrong` if a score is not finite, `timeout` if it took longer than its budget."""
    ending = replace(
        common,
        outcome="ok",
        wall_s=done.wall_s,
        rows=done.rows,
        details=done.details,
        notes=done.notes,
        samples=progress.samples | done.samples,
        bench=done.bench,
        work=done.work,
    )
    return check_time(check_scores(ending, done.scores), budget)


def check_scores(ending: Ending, scores: Mapping[str, float]) -> Ending:
    """The ending with the finite scores only; its outcome is `wrong` if another score is not finite."""
    bad = sorted(
        name for name, value in scores.items() if isinstance(value, float) and not math.isfinite(value)
    )
    ending = replace(ending, scores={name: value for name, value in scores.items() if name not in bad})
    if not bad:
        return ending
    message = f"no finite score: {', '.join(f'{name} is {scores[name]}' for name in bad)}"
    hint = "is a metric not defined on these data (one class only), or did the model predict NaN?"
    return replace(ending, outcome="wrong", message=message, hint=hint)


def check_time(ending: Ending, budget: Budget) -> Ending:
    """The ending; a `timeout` if the run took longer than its budget, by however little."""
    if budget.time_s is None or ending.wall_s <= budget.time_s:
        return ending
    message = f"the buzzer went: the run took {ending.wall_s:.2f} s, the budget has {budget.time_s:g} s"
    return replace(ending, outcome="timeout", message=message, hint=MORE_TIME)


def unfinished(common: Ending, progress: RunProgress, usage: Usage, budget: Budget) -> Ending:
    """The ending of a run that failed or was stopped."""
    outcome, message, hint = explain(progress, usage, budget)
    details = progress.end.details if progress.end is not None else {}
    if usage.process.reason is Reason.INTERRUPTED:
        details = {INTERRUPTED: True}
    return replace(
        common,
        outcome=outcome,
        message=message,
        hint=hint,
        wall_s=progress.running_since_s if progress.scoring else usage.age_s,
        samples=progress.samples,
        details=details,
        stderr_tail=usage.stderr_tail,
    )


def explain(progress: RunProgress, usage: Usage, budget: Budget) -> tuple[str, str, str]:
    """Outcome, message and hint of a run that did not finish."""
    measured, phase = usage.process, progress.running or "start"
    match measured.reason:
        case Reason.MEMORY:
            message = f"over the memory limit in phase {phase}"
            return "host-oom", message, "give it more memory or a smaller --scale"
        case Reason.TIME:
            return "timeout", f"the buzzer went in phase {phase}", MORE_TIME
        case Reason.SCORING:
            message = f"scoring took longer than {limits.scoring_s(budget):g} s"
            return "error", message, "the run itself was complete; `buzzer data score` scores its submission"
        case Reason.LINGERING:
            message = f"the process was still running {limits.LINGER_S:g} s after it had reported its end"
            return "error", message, "does the task leave threads or processes behind?"
        case Reason.CORES:
            message = f"used cores outside the budget's in phase {phase}"
            return "error", message, "does the task or a library set its own affinity?"
        case Reason.INTERRUPTED:
            return "error", f"interrupted in phase {phase}", RESUME
        case Reason.FAILED:
            what = "started" if progress.born_s is None else "measured"
            message = ": ".join(filter(None, [f"the process could not be {what}", measured.error]))
            return "error", message, "`buzzer env` shows how limits are enforced here"
    if progress.broken is not None:
        hint = "only the harness may write there; does the task write to files that it did not open?"
        problem = "a line that is not an event or contradicts an earlier one"
        return "error", f"the run's events file holds {problem}: {progress.broken!r}", hint
    if isinstance(progress.end, Failed):
        return progress.end.outcome, progress.end.message, progress.end.hint
    if measured.exit_code < 0:
        number = -measured.exit_code
        return "error", f"killed by signal {number} in phase {phase}", SIGNALS.get(number, STOPPED)
    message = f"the process ended with exit code {measured.exit_code} in phase {phase}"
    if usage.stderr_tail:
        return "error", message, "see stderr_tail"
    if usage.temporary_full:
        hint = "free some space there, or set TMPDIR to another folder"
        return "error", f"{message}: no space left in {tempfile.gettempdir()}", hint
    return "error", message, "stderr is empty: was TMPDIR full, or does a library end the process?"


def compared_cpu_s(measured: Measured, progress: RunProgress) -> float | None:
    """CPU seconds of all processes, without those of the main process in phase `score`."""
    if measured.cpu_s is None or SCORE not in progress.phases:
        return measured.cpu_s
    return max(measured.cpu_s - progress.phases[SCORE].cpu_s, 0.0)
