"""What `buzzer check` finds wrong with records beyond their schema: figures that contradict each other or their neighbours.

It finds contradictions, not lies that are told consistently: a wall time that was lowered together with its phases and
samples cannot be seen from the record.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from buzzer.errors import DataError, UsageError
from buzzer.models.api.context import SCORE
from buzzer.suite import budget as budgets
from buzzer.suite import registry
from buzzer.suite.escape import printable
from buzzer.suite.records import gate, record
from buzzer.suite.records.record import PHASE_SLACK_S, PHASE_TOLERANCE, Record

Found = dict[Path, list[str]]

CPU_SHARE, CPU_SLACK_S = (
    1.1,
    0.5,
)  # CPU seconds beyond cores x wall time: clocks that tick, time between two readings
GPU_SLACK_S = 2.0  # NVML is asked every 0.2 s
RESIDENT = 10.0  # times the control group's peak that a phase may have resident: libraries that others loaded are not charged
EARLY = 0.9  # share of the budget's time before which no run times out
PEAKS = 3.0  # times the measured peak that no run reaches
SHARE_SCORES = re.compile(r"(accuracy|AUC|AP|MRR|F1|argmax_agreement)(?![^\W_])")  # between 0 and 1
COSINE_SLACK = 1e-3  # of a cosine of FP32 vectors


@dataclass
class Checked:
    """Records that could be read, and what is wrong with files, none of it for good ones."""

    records: dict[Path, Record] = field(default_factory=dict)
    problems: Found = field(default_factory=dict)
    unseen: list[Path] = field(default_factory=list)  # passes whose reference run is not here

    @property
    def good(self) -> dict[Path, Record]:
        return {path: r for path, r in self.records.items() if not self.problems[path]}


def check(paths: Sequence[Path], fingerprints: Mapping[str, str] | None = None) -> Found:
    """Problems by file; an empty list is a good record. `fingerprints` are those of official files, by task."""
    return examine(paths, fingerprints, whole=len(paths) > 1).problems


def examine(
    paths: Sequence[Path], fingerprints: Mapping[str, str] | None = None, whole: bool = True
) -> Checked:
    """Read and check records. In a `whole` set a pass whose reference run is neither in it nor beside it is wrong."""
    made = Checked()
    for path in paths:
        try:
            made.records[path] = record.read(path)
            made.problems[path] = alone(made.records[path])
        except DataError as error:
            made.problems[path] = [error.message.removeprefix(printable(f"{path}: "))]
    found = [*neighbours(made.records, fingerprints or {}), *passes(made, whole)]
    for path, problem in found:
        made.problems[path].append(problem)
    return made


def alone(r: Record) -> list[str]:
    """What contradicts itself inside one record."""
    found = [
        *identity(r),
        *phases(r),
        *samples(r),
        *outcome(r),
        *limits(r),
        *cpu(r),
        *gate_alone(r),
        *gpu(r),
        *scores(r),
        *bench(r),
    ]
    return [problem for problem in found if problem]


def identity(r: Record) -> list[str]:
    """What names the run, its code and its data."""
    problems = []
    written = registry.params_hash(r.config)
    if written != r.config_hash:
        problems.append(f"config_hash is {r.config_hash}, the config's is {written}")
    unknown = r.data_fingerprint == "" and r.enforcement == "none"  # not started: its data were not made
    if not unknown and not re.fullmatch(r"[0-9a-f]{64}", r.data_fingerprint):
        problems.append("data_fingerprint is no sha256")
    if r.git_commit is not None and not re.fullmatch(r"[0-9a-f]{40}(\+dirty)?", r.git_commit):
        problems.append("git_commit is no commit")
    if r.created > datetime.now(UTC) + timedelta(days=1):
        problems.append(f"created in the future: {r.created:%Y-%m-%d}")
    task = registry.tasks().get(r.task)
    if task is not None and r.job == "predict" and r.outcome == "ok":
        precisions = {*task.precisions, *registry.precisions()}
        pairs = ((r.engine, task.engines), (r.backend, task.backends), (r.precision, precisions))
        problems += [f"{r.task} has no {name}" for name, known in pairs if name not in known]
        if r.cluster and not task.clustered:
            problems.append(f"{r.task} on a cluster: it runs in one process")
    return problems


def phases(r: Record) -> list[str]:
    """Phases are told once each, and `score` is the last."""
    names = [p.name for p in r.phases]
    problems = [f"phase {name} twice" for name in sorted(set(names)) if names.count(name) > 1]
    if SCORE in names[:-1] and r.outcome in ("ok", "wrong"):
        problems.append(f"{names[-1]} after phase {SCORE}")
    if r.outcome == "ok" and not names:
        problems.append("ok without phases")
    if r.outcome == "ok" and r.phase_reached and r.phase_reached not in names:
        problems.append(f"ok in phase {r.phase_reached}, which it does not have")
    return problems


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


def outcome(r: Record) -> list[str]:
    """The outcome and the figures tell one story."""
    problems = []
    if r.enforcement == "none":  # never started
        told = {"wall time": r.wall_s, "phases": r.phases, "scores": r.scores, "samples": r.samples}
        problems += [f"enforcement none, but {name}" for name, value in told.items() if value]
        if r.outcome in ("ok", "wrong"):
            problems.append(f"outcome {r.outcome} of a run without enforcement: it was never started")
    if r.published and (r.phases or r.samples):
        problems.append("called published, which buzzer did not measure, but it has phases or samples")
    if r.outcome == "ok" and r.message:
        problems.append("ok with a message of what went wrong")
    if r.outcome in ("error", "unsupported", "host-oom") and r.scores:
        problems.append(f"outcome {r.outcome} with scores")
    if r.outcome != "ok" and not r.message:
        problems.append(f"outcome {r.outcome} without a message")
    if r.outcome == "timeout" and r.enforcement != "none":
        if r.budget.time_s is None:
            problems.append("timeout without a time limit")
        elif r.wall_s < EARLY * r.budget.time_s:
            problems.append(f"timeout after {r.wall_s:.1f} s, the budget has {r.budget.time_s:g} s")
    return problems


def limits(r: Record) -> list[str]:
    """The budget is what its name says, the machine can give it, and a run that ended well kept to it."""
    problems = [budget_name(r)]
    limit, here = r.budget, r.machine
    if r.outcome == "ok" and not limit.unmet:
        if (limit.cores or 0) > here.cores:
            problems.append(f"{limit.cores} cores on a machine of {here.cores}, and nothing is unmet")
        if (limit.memory_bytes or 0) > here.memory_bytes:
            problems.append(f"a limit of {limit.memory_bytes} bytes on a machine of {here.memory_bytes}")
    if r.outcome != "ok":
        return problems
    if limit.time_s is not None and r.wall_s > limit.time_s:
        problems.append(f"ok after {r.wall_s:.1f} s, the budget has {limit.time_s:g} s")
    peak = r.peak_memory_bytes
    if r.enforcement == "cgroups" and peak is not None:
        if limit.memory_bytes and peak > limit.memory_bytes:
            problems.append(f"ok with a peak of {peak} bytes, the budget has {limit.memory_bytes}")
        if not 0 < peak <= here.memory_bytes:
            problems.append(f"a peak of {peak} bytes on a machine of {here.memory_bytes}")
        resident = max((p.peak_memory_bytes for p in r.compared), default=0)
        if resident > RESIDENT * peak:
            problems.append(f"a peak of {peak} bytes, a phase had {resident}")
    return problems


def budget_name(r: Record) -> str:
    """That the budget's limits are not those of its name; empty where they are."""
    try:
        meant = budgets.astuple(budgets.resolve(r.budget.name))
    except UsageError:
        return f"budget {r.budget.name} is neither a known name nor written-out limits"
    limit = r.budget
    has = (limit.cores, limit.memory_bytes, limit.time_s, limit.gpu_memory_bytes)
    return "" if has == meant else f"budget {limit.name} means {_told(meant)}, the record has {_told(has)}"


def _told(limits: Iterable[float | None]) -> str:
    names = ("cores", "bytes", "s", "bytes of GPU memory")
    told = [f"{value:g} {name}" for value, name in zip(limits, names, strict=True) if value is not None]
    return ", ".join(told) or "no limit"


def cpu(r: Record) -> list[str]:
    """No run has more CPU time than its cores can give, nor its main process more than all of it."""
    if r.outcome not in ("ok", "wrong"):
        return []
    cores = min(r.budget.cores or r.machine.cores, r.machine.cores)
    spent = [("the run", r.cpu_s, r.wall_s + (r.score_s or 0.0))]
    spent += [(f"phase {p.name}", p.cpu_s, p.wall_s) for p in r.phases]
    problems = [
        f"{name} took {cpu_s:.1f} CPU seconds of {cores} cores in {wall_s:.1f} s"
        for name, cpu_s, wall_s in spent
        if cpu_s is not None and cpu_s > cores * (CPU_SHARE * wall_s + CPU_SLACK_S)
    ]
    main = sum(p.cpu_s for p in r.compared)
    if r.cpu_s is not None and main > CPU_SHARE * r.cpu_s + CPU_SLACK_S:
        problems.append(f"its phases took {main:.1f} CPU seconds, all of it {r.cpu_s:.1f}")
    return problems


def gate_alone(r: Record) -> list[str]:
    """The gate's verdict and the outcome tell one story."""
    status, problems = r.gate.status, []
    if r.job == "predict" and status == "passed" and r.gate.reference_run is None:
        problems.append("gate passed without a reference_run")
    if status == "failed" and r.outcome != "wrong":
        problems.append(f"gate failed, outcome {r.outcome}")
    elif r.outcome == "wrong" and status != "failed":
        problems.append(f"outcome wrong, gate {status}")
    elif r.outcome != "ok" and status not in ("failed", "unscored"):
        problems.append(f"gate {status}, outcome {r.outcome}")
    if status not in ("passed", "failed") and (r.gate.differences or r.gate.reference_run):
        problems.append(f"gate {status} with a comparison")
    if problem := reference_alone(r):
        problems.append(problem)
    far = far_off(r)
    if status == "passed" and far:
        problems.append(f"gate passed, but {', '.join(far)} off by more than the task's tolerance")
    return problems


def reference_alone(r: Record) -> str:
    """That a run is called the reference and is not, or the other way round."""
    if r.job == "bench":
        return "gate reference of a bench run" if r.gate.status == "reference" else ""
    task = registry.tasks().get(r.task)
    if task is None or r.outcome != "ok":
        return ""
    said, is_one = r.gate.status == "reference", gate.is_reference(r, task)
    if said and not is_one:
        meant = f"{task.reference.engine} {task.reference.backend}"
        return f"gate reference, but the reference of {r.task} is {meant} in fp32 and one process"
    if is_one and r.job == "predict" and r.gate.status in ("passed", "no-reference"):
        return f"gate {r.gate.status}, but this is the reference variant"
    return ""


def far_off(r: Record) -> list[str]:
    """Scores further from the reference's than the task allows; none where the task is not known here."""
    task = registry.tasks().get(r.task)
    if task is None or r.job != "predict":
        return []
    if r.precision in task.relative:
        found, difference = r.scores.get(task.metric, 0.0), r.gate.differences.get(task.metric, 0.0)
        return [] if found >= task.relative[r.precision] * (found - difference) else [task.metric]
    return [name for name, d in r.gate.differences.items() if not abs(d) <= task.tolerance]


def gpu(r: Record) -> list[str]:
    """GPU figures belong to runs on the GPU, and fit the machine's GPUs and the budget."""
    problems, busy, peak = (
        [gate.no_gpu_proof(r), gate.over_gpu_memory(r)],
        r.gpu_busy_s,
        r.gpu_peak_memory_bytes,
    )
    if r.device == "cpu":
        if peak:
            problems.append("a run on the CPU with GPU memory")
        if r.engine in registry.GPU_ENGINES and r.outcome == "ok":
            problems.append(f"engine {r.engine} on the CPU")
        return problems
    if r.cluster:  # its GPUs may be in other machines
        return problems
    if r.outcome == "ok" and not r.machine.gpus:
        problems.append("a run on the GPU of a machine without one")
    if busy is not None and busy > r.wall_s + (r.score_s or 0.0) + GPU_SLACK_S:
        problems.append(f"the GPU was busy for {busy:.1f} s of {r.wall_s:.1f} s")
    have = [g.memory_bytes for g in r.machine.gpus if g.memory_bytes is not None]
    if peak is not None and have and peak > sum(have):
        problems.append(f"a peak of {peak} bytes of GPU memory, the machine has {sum(have)}")
    return problems


def scores(r: Record) -> list[str]:
    """A run that ended well has the score that ranks its task, and shares lie between 0 and 1."""
    problems = []
    if r.outcome == "ok" and r.job == "predict" and r.metric not in r.scores:
        problems.append(f"ok without the score {r.metric}")
    task = registry.tasks().get(r.task)
    if task is not None and r.job == "predict" and r.metric != task.metric:
        problems.append(f"{r.task} is ranked by {task.metric}, not by {r.metric}")
    if r.outcome == "ok" and r.job == "predict" and not r.rows:
        problems.append("ok without rows")
    if r.scoring == "outside" and r.job == "predict" and r.scores and r.score_s is None:
        problems.append(f"scores without a phase {SCORE}: scoring is inside the wall time")
    beyond = [name for name, v in r.scores.items() if SHARE_SCORES.match(name) and not 0 <= v <= 1]
    beyond += [name for name, v in r.scores.items() if name == "cosine" and abs(v) > 1 + COSINE_SLACK]
    return problems + [f"score {name} is {r.scores[name]:g}" for name in beyond]


def bench(r: Record) -> list[str]:
    """Sizes, throughput, floor and gate of a bench record follow from its own figures."""
    b = r.bench
    if r.job != "bench":
        return [] if b is None else [f"figures of a bench in job {r.job}"]
    if r.outcome != "ok":
        return []
    if b is None:
        return ["ok without figures of the bench"]
    config, warm = r.config, r.samples.get("warm_run", [])
    problems = [
        f"bench.{name} is {getattr(b, name)}, the config has {config[name]}"
        for name in ("batch", "lengths", "packing", "scenario")
        if name in config and getattr(b, name) != config[name]
    ]
    if b.lengths == "fixed" and warm and b.rows != b.batch * len(warm):
        problems.append(f"{b.rows} rows in {len(warm)} runs of {b.batch}")
    if b.rows > r.rows:
        problems.append(f"{b.rows} rows in warm runs, {r.rows} in all")
    if b.threads > r.machine.cores:
        problems.append(f"{b.threads} threads on {r.machine.cores} cores")
    walls = {p.name: p.wall_s for p in r.phases}
    for phase in ("warm", "cold"):
        spent, wall = sum(r.samples.get(f"{phase}_run", [])), walls.get(phase, 0.0)
        if spent > (1 + PHASE_TOLERANCE) * wall + PHASE_SLACK_S:
            problems.append(f"{phase} runs of {spent:.3f} s in a phase of {wall:.3f} s")
    parts = [b.bytes_moved / b.bandwidth] if b.bytes_moved else []
    parts += [b.flops / b.peak] if b.flops and b.peak else []
    if b.floor_s is not None and parts and abs(b.floor_s - max(parts)) > 1e-6 * max(parts):
        problems.append(f"floor_s is {b.floor_s:g}, bytes and FLOPs make {max(parts):g}")
    if warm and b.flops and b.peak and b.lengths == "fixed" and b.flops > PEAKS * b.peak * median(warm):
        problems.append(
            f"runs of {b.flops / b.peak / median(warm):.1f} times the FLOPs a second measured here"
        )
    if b.bad_runs and r.gate.status == "passed":
        problems.append(f"gate passed with {b.bad_runs} bad runs")
    return [*problems, bench_gate(r)]


def bench_gate(r: Record) -> str:
    if r.precision not in registry.precisions() or not r.scores:
        return ""
    missing = {"cosine", "max_relative_error"} - r.scores.keys()
    if missing:
        return f"ok without the score {', '.join(sorted(missing))}"
    made = gate.judge_bench(r, **registry.bench_gate(r.precision)).gate.status
    return "" if made == r.gate.status else f"gate {r.gate.status}, but its scores have {made}"


def neighbours(good: Mapping[Path, Record], fingerprints: Mapping[str, str]) -> Iterable[tuple[Path, str]]:
    """What contradicts another record, or the official files' fingerprint."""
    by_run: dict[str, Path] = {}
    data: dict[str, list[Path]] = {}
    for path, r in good.items():
        if r.run_id in by_run:
            yield path, f"run_id is that of {printable(str(by_run[r.run_id]))}"
        by_run.setdefault(r.run_id, path)
        data.setdefault(r.data_fingerprint, []).append(path)
        expected = fingerprints.get(r.task)
        if expected is not None and r.data_source == "official" and r.data_fingerprint != expected:
            yield path, f"data_fingerprint is not that of the files given, {expected[:12]}..."
    for same in data.values():
        for name in ("data_rows", "data_source"):
            yield from _odd_ones({path: good[path] for path in same}, name)


def _odd_ones(same: Mapping[Path, Record], name: str) -> Iterable[tuple[Path, str]]:
    """Records of one data_fingerprint that differ in a field from most others, or from the oldest."""
    oldest_first = sorted(same.items(), key=lambda item: item[1].created)
    values = {path: json.dumps(getattr(r, name), sort_keys=True) for path, r in oldest_first}
    [(most, _)] = Counter(values.values()).most_common(1)  # of equally common ones the first
    model = next(path for path, value in values.items() if value == most)
    for path, value in values.items():
        if value != most:
            yield path, f"{name} differ from {printable(str(model))}'s, the data_fingerprint does not"


def passes(made: Checked, whole: bool) -> Iterable[tuple[Path, str]]:
    """What is wrong with the comparison that a gate wrote down, made again with the reference's record."""
    by_run = {r.run_id: path for path, r in made.records.items()}
    beside = functools.cache(_beside)
    for path, r in made.records.items():
        wanted = r.gate.reference_run
        if wanted is None:
            continue
        inside = by_run.get(wanted)
        reference = made.records[inside] if inside is not None else beside(path.parent, wanted)
        if reference is not None:
            sound = made.problems[inside] == [] if inside is not None else not alone(reference)
            if problem := _gate_with(r, reference, sound):
                yield path, problem
        elif whole and r.gate.status == "passed":
            yield (
                path,
                f"its reference_run {wanted[:8]} is not among these records: put its record beside this one",
            )
        else:
            made.unseen.append(path)


def _beside(folder: Path, run_id: str) -> Record | None:
    """The record of a run in a folder, by the name that records have."""
    for path in record.paths([folder]):
        if path.parent == folder and path.stem.endswith(f"-{run_id[:8]}"):
            with suppress(DataError):
                if (found := record.read(path)).run_id == run_id:
                    return found
    return None


def _gate_with(r: Record, reference: Record, sound: bool) -> str:
    """Why the gate's verdict does not follow from the two records; empty where it does."""
    name = f"its reference_run {reference.run_id[:8]}"
    if not gate.same_question(r, reference):
        return f"{name} had other data, parameters, seed or fit"
    if reference.gate.status != "reference" or reference.outcome != "ok":
        return f"{name} is no reference: outcome {reference.outcome}, gate {reference.gate.status}"
    if not sound:
        return f"{name} is not valid"
    if r.job == "predict" and r.outcome == "ok" and r.rows != reference.rows:
        return f"it predicted {r.rows} rows, {name} {reference.rows}"
    made = {k: r.scores[k] - v for k, v in reference.scores.items() if k in r.scores}
    for key in sorted(made.keys() | r.gate.differences.keys()):
        told, again = r.gate.differences.get(key, float("nan")), made.get(key, float("nan"))
        if not abs(again - told) <= 1e-9:
            return f"gate says {key} differs by {told:g}, the records say {again:g}"
    missing = sorted(reference.scores.keys() - r.scores.keys())
    if missing and r.gate.status == "passed" and r.precision == reference.precision:
        return f"gate passed without the reference's score {', '.join(missing)}"
    return ""
