"""What `buzzer check` finds wrong with records beyond their schema: figures that contradict each other or their neighbours."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from buzzer.errors import DataError
from buzzer.models.job import SCORE
from buzzer.suite import gate, record, registry
from buzzer.suite.record import PHASE_SLACK_S, PHASE_TOLERANCE, Record

Found = dict[Path, list[str]]


def check(paths: Sequence[Path], fingerprints: Mapping[str, str] | None = None) -> Found:
    """Problems by file; an empty list is a good record. `fingerprints` are those of official files, by task."""
    found: Found = {}
    good: dict[Path, Record] = {}
    for path in paths:
        try:
            good[path] = record.read(path)
            found[path] = alone(good[path])
        except DataError as error:
            found[path] = [error.message.removeprefix(f"{path}: ")]
    for path, problems in together(good, fingerprints or {}):
        found[path].append(problems)
    return found


def alone(r: Record) -> list[str]:
    """What contradicts itself inside one record."""
    problems = [*samples(r), *budget(r), *gate_alone(r), gate.no_gpu_proof(r), gpu_figures(r)]
    written = registry.params_hash(r.config)
    if written != r.config_hash:
        problems.append(f"config_hash is {r.config_hash}, the config's is {written}")
    if not re.fullmatch(r"[0-9a-f]{64}", r.data_fingerprint):
        problems.append("data_fingerprint is no sha256")
    if r.outcome == "ok" and r.job == "predict" and r.metric not in r.scores:
        problems.append(f"ok without the score {r.metric}")
    if r.scoring == "outside" and r.job == "predict" and r.scores and r.score_s is None:
        problems.append(f"scores without a phase {SCORE}: scoring is inside the wall time")
    if r.outcome not in ("ok", "wrong") and not r.message:
        problems.append(f"outcome {r.outcome} without a message")
    return [p for p in problems if p]


def samples(r: Record) -> list[str]:
    """Laps add up to their phase, in runs whose laps are parts of a phase."""
    if r.job not in ("fit", "predict"):
        return []
    walls = {p.name: p.wall_s for p in r.phases}
    problems = [f"samples of {name}, which is no phase" for name in r.samples.keys() - walls.keys()]
    for name, laps in r.samples.items():
        wall = walls.get(name, sum(laps))
        ended = r.outcome in ("ok", "wrong") or name != r.phase_reached  # a cut phase has no last lap
        if ended and abs(sum(laps) - wall) > PHASE_TOLERANCE * wall + PHASE_SLACK_S:
            problems.append(f"samples of {name} add up to {sum(laps):.3f} s, the phase has {wall:.3f} s")
    return problems


def budget(r: Record) -> list[str]:
    """A run that ended well kept to its limits."""
    if r.outcome != "ok":
        return []
    problems = []
    if r.budget.time_s is not None and r.wall_s > r.budget.time_s:
        problems.append(f"ok after {r.wall_s:.1f} s, the budget has {r.budget.time_s:g} s")
    if (
        r.enforcement == "cgroups"
        and r.budget.memory_bytes
        and (r.peak_memory_bytes or 0) > r.budget.memory_bytes
    ):
        problems.append(
            f"ok with a peak of {r.peak_memory_bytes} bytes, the budget has {r.budget.memory_bytes}"
        )
    return problems


def gate_alone(r: Record) -> list[str]:
    """The gate's verdict and the outcome tell one story."""
    status, problems = r.gate.status, []
    if r.job == "predict" and status == "passed" and r.gate.reference_run is None:
        problems.append("gate passed without a reference_run")
    if status == "failed" and r.outcome != "wrong":
        problems.append(f"gate failed, outcome {r.outcome}")
    if r.outcome == "wrong" and status != "failed":
        problems.append(f"outcome wrong, gate {status}")
    far = far_off(r)
    if status == "passed" and far:
        problems.append(f"gate passed, but {', '.join(far)} off by more than the task's tolerance")
    return problems


def far_off(r: Record) -> list[str]:
    """Scores further from the reference's than the task allows; none where the task is not known here."""
    task = registry.tasks().get(r.task)
    if task is None or r.job != "predict":
        return []
    if r.precision in task.relative:
        found, difference = r.scores.get(task.metric, 0.0), r.gate.differences.get(task.metric, 0.0)
        return [] if found >= task.relative[r.precision] * (found - difference) else [task.metric]
    return [name for name, d in r.gate.differences.items() if not abs(d) <= task.tolerance]


def gpu_figures(r: Record) -> str:
    if r.device == "cpu" and r.gpu_peak_memory_bytes:
        return "a run on the CPU with GPU memory"
    return ""


def together(good: Mapping[Path, Record], fingerprints: Mapping[str, str]) -> Iterable[tuple[Path, str]]:
    """What contradicts another record, or the official files' fingerprint."""
    by_run: dict[str, Path] = {}
    rows: dict[str, tuple[Path, dict[str, int]]] = {}
    for path, r in good.items():
        if r.run_id in by_run:
            yield path, f"run_id is that of {by_run[r.run_id]}"
        by_run.setdefault(r.run_id, path)
        if rows.setdefault(r.data_fingerprint, (path, r.data_rows))[1] != r.data_rows:
            yield (
                path,
                f"data_rows differ from {rows[r.data_fingerprint][0]}'s, the data_fingerprint does not",
            )
        expected = fingerprints.get(r.task)
        if expected is not None and r.data_source == "official" and r.data_fingerprint != expected:
            yield path, f"data_fingerprint is not that of the files given, {expected[:12]}..."
    for path, r in good.items():
        reference = by_run.get(r.gate.reference_run or "")
        if reference is not None and (problem := _gate_with(r, good[reference])):
            yield path, problem


def _gate_with(r: Record, reference: Record) -> str:
    """The differences that the gate wrote down, made again."""
    if not gate.same_question(r, reference):
        return f"its reference_run {reference.run_id[:8]} had other data, parameters, seed or fit"
    for name, told in r.gate.differences.items():
        made = r.scores.get(name, float("nan")) - reference.scores.get(name, float("nan"))
        if not abs(made - told) <= 1e-9:
            return f"gate says {name} differs by {told:g}, the records say {made:g}"
    return ""
