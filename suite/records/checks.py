"""The checks of `buzzer check` within one record, in addition to its schema: figures that contradict each other.

They find contradictions. They cannot find consistent falsehoods: a wall time that was lowered together with its phases and samples
cannot be seen from the record.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from statistics import median

from buzzer.engine import frames
from buzzer.errors import UsageError
from buzzer.models.api.context import SCORE
from buzzer.suite import budget as budgets
from buzzer.suite import registry
from buzzer.suite.records import gate
from buzzer.suite.records.schema import PHASE_SLACK_S, PHASE_TOLERANCE, Record
from buzzer.suite.words import counted

# CPU seconds that may exceed cores x wall time: the clock's ticks, and time between two readings.
CPU_SHARE, CPU_SLACK_S = 1.1, 0.5
GPU_SLACK_S = 2.0  # NVML is read every 0.2 s
RESIDENT = 10.0  # resident size of a phase / peak of the control group, at most: libraries loaded by others are not charged
EARLY = 0.9  # no run times out before this share of the budget's time
PEAKS = 3.0  # maximum of FLOPs per second of a run / measured peak
SHARE_SCORES = re.compile(r"(accuracy|AUC|AP|MRR|F1|argmax_agreement)(?![^\W_])")  # between 0 and 1
COSINE_SLACK = 1e-3  # rounding error of a cosine of FP32 vectors


def check_one(r: Record) -> list[str]:
    """The contradictions within one record."""
    problems = [
        *identity(r),
        *phases(r),
        *samples(r),
        *outcome(r),
        *limits(r),
        *cpu(r),
        *verdict(r),
        *gpu(r),
        *scores(r),
        *work(r),
        *sittings(r),
        *train_scale(r),
        *bench(r),
    ]
    return [problem for problem in problems if problem]


def identity(r: Record) -> list[str]:
    """Hashes, commit and time are valid, and the task has the run's engine, backend and precision."""
    problems = []
    computed = registry.params_hash(r.config)
    if computed != r.config_hash:
        problems.append(f"config_hash is {r.config_hash}, the config's is {computed}")
    no_data = (
        r.data_fingerprint == "" and r.enforcement == "none"
    )  # not started, because its data could not be made
    if not no_data and not re.fullmatch(r"[0-9a-f]{64}", r.data_fingerprint):
        problems.append("data_fingerprint is not a sha256")
    if r.git_commit is not None and not re.fullmatch(r"[0-9a-f]{40}(\+dirty)?", r.git_commit):
        problems.append("git_commit is not a commit")
    if r.created > datetime.now(UTC) + timedelta(days=1):
        problems.append(f"created in the future: {r.created:%Y-%m-%d}")
    task = registry.tasks().get(r.task)
    if task is not None and r.job == "predict" and r.outcome == "ok":
        precisions = {*task.precisions, *registry.precisions()}
        pairs = ((r.engine, task.engines), (r.backend, task.backends), (r.precision, precisions))
        problems += [f"{r.task} has no {name}" for name, names in pairs if name not in names]
        if r.cluster and not task.clustered:
            problems.append(f"{r.task} on a cluster: it runs in one process")
    return problems


def phases(r: Record) -> list[str]:
    """Each phase occurs once, and `score` is the last."""
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
    """The laps of a phase add up to its wall time, except in bench runs."""
    if r.job not in ("fit", "predict"):
        return []
    walls = {p.name: p.wall_s for p in r.phases}
    problems = [f"samples of {name}, which is not a phase" for name in r.samples.keys() - walls.keys()]
    for name, laps in r.samples.items():
        wall = walls.get(name, sum(laps))
        ended = (
            r.outcome in ("ok", "wrong") or name != r.phase_reached
        )  # an interrupted phase has no last lap
        if ended and abs(sum(laps) - wall) > PHASE_TOLERANCE * wall + PHASE_SLACK_S:
            problems.append(f"samples of {name} add up to {sum(laps):.3f} s, the phase has {wall:.3f} s")
    return problems


def outcome(r: Record) -> list[str]:
    """The outcome and the figures are consistent."""
    problems = []
    if r.enforcement == "none":  # never started
        figures = {"wall time": r.wall_s, "phases": r.phases, "scores": r.scores, "samples": r.samples}
        problems += [f"enforcement none, but {name}" for name, value in figures.items() if value]
        if r.outcome in ("ok", "wrong"):
            problems.append(f"outcome {r.outcome} of a run without enforcement: it was never started")
    if r.published and (r.phases or r.samples):
        problems.append("published, so not measured by buzzer, but it has phases or samples")
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
    """The budget's limits match its name, the machine can provide them, and an `ok` run did not exceed them."""
    problems = [budget_name(r)]
    limit, here = r.budget, r.machine
    if r.outcome == "ok" and not limit.unmet:
        if (cores := limit.cores or 0) > here.cores:
            problems.append(f"{counted(cores, 'core')} on a machine of {here.cores}, and nothing is unmet")
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
    """Why the budget's limits do not match its name, or an empty string."""
    try:
        named = budgets.astuple(budgets.resolve(r.budget.name))
    except UsageError:
        return f"budget {r.budget.name} is neither a known name nor written-out limits"
    limit = r.budget
    recorded = (limit.cores, limit.memory_bytes, limit.time_s, limit.gpu_memory_bytes)
    if recorded == named:
        return ""
    return f"budget {limit.name} means {_limits_text(named)}, the record has {_limits_text(recorded)}"


def _limits_text(limits: Iterable[float | None]) -> str:
    cores, *others = limits
    parts = [] if cores is None else [counted(int(cores), "core")]
    units = ("bytes", "s", "bytes of GPU memory")
    parts += [f"{value:g} {unit}" for value, unit in zip(others, units, strict=True) if value is not None]
    return ", ".join(parts) or "no limit"


def cpu(r: Record) -> list[str]:
    """A run has at most the CPU time that its cores can provide, and its main process has at most the run's CPU time."""
    if r.outcome not in ("ok", "wrong"):
        return []
    cores = min(r.budget.cores or r.machine.cores, r.machine.cores)
    spent = [("the run", r.cpu_s, r.wall_s + (r.score_s or 0.0))]
    spent += [(f"phase {p.name}", p.cpu_s, p.wall_s) for p in r.phases]
    problems = [
        f"{name} took {cpu_s:.1f} CPU seconds of {counted(cores, 'core')} in {wall_s:.1f} s"
        for name, cpu_s, wall_s in spent
        if cpu_s is not None and cpu_s > cores * (CPU_SHARE * wall_s + CPU_SLACK_S)
    ]
    main = sum(p.cpu_s for p in r.compared)
    if r.cpu_s is not None and main > CPU_SHARE * r.cpu_s + CPU_SLACK_S:
        problems.append(f"its phases took {main:.1f} CPU seconds, all of it {r.cpu_s:.1f}")
    return problems


def verdict(r: Record) -> list[str]:
    """The gate's verdict and the outcome are consistent."""
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
    if problem := reference(r):
        problems.append(problem)
    names = out_of_tolerance(r)
    if status == "passed" and names:
        problems.append(f"gate passed, but {', '.join(names)} off by more than the task's tolerance")
    return problems


def reference(r: Record) -> str:
    """Why a run is marked as a reference but is not one, or the reverse; else an empty string."""
    if r.job == "bench":
        return "gate reference of a bench run" if r.gate.status == "reference" else ""
    task = registry.tasks().get(r.task)
    if task is None or r.outcome != "ok":
        return ""
    marked, is_reference = r.gate.status == "reference", gate.is_reference(r, task)
    if marked and not is_reference:
        variant = f"{task.reference.engine} {task.reference.backend}"
        return f"gate reference, but the reference of {r.task} is {variant} in fp32 and one process"
    if is_reference and r.job == "predict" and r.gate.status in ("passed", "no-reference"):
        return f"gate {r.gate.status}, but this is the reference variant"
    return ""


def out_of_tolerance(r: Record) -> list[str]:
    """The scores that differ from the reference's by more than the task's tolerance; empty for an unknown task."""
    task = registry.tasks().get(r.task)
    if task is None or r.job != "predict":
        return []
    if r.precision in task.relative:
        score, difference = r.scores.get(task.metric, 0.0), r.gate.differences.get(task.metric, 0.0)
        return [] if score >= task.relative[r.precision] * (score - difference) else [task.metric]
    return [name for name, d in r.gate.differences.items() if not abs(d) <= task.tolerance]


def gpu(r: Record) -> list[str]:
    """GPU figures occur only in runs on the GPU, and agree with the machine's GPUs and the budget."""
    problems = [gate.no_gpu_proof(r), gate.over_gpu_memory(r)]
    busy, peak = r.gpu_busy_s, r.gpu_peak_memory_bytes
    if r.device == "cpu":
        if peak:
            problems.append("a run on the CPU with GPU memory")
        if frames.on_gpu(r.engine) and r.outcome == "ok":
            problems.append(f"engine {r.engine} on the CPU")
        return problems
    if r.cluster:  # its GPUs may be in other machines
        return problems
    if r.outcome == "ok" and not r.machine.gpus:
        problems.append("a run on the GPU of a machine without one")
    if busy is not None and busy > r.wall_s + (r.score_s or 0.0) + GPU_SLACK_S:
        problems.append(f"the GPU was busy for {busy:.1f} s of {r.wall_s:.1f} s")
    memory = sum(g.memory_bytes or 0 for g in r.machine.gpus)
    if peak is not None and memory and peak > memory:
        problems.append(f"a peak of {peak} bytes of GPU memory, the machine has {memory}")
    return problems


def scores(r: Record) -> list[str]:
    """An `ok` run has the score that ranks its task, and scores that are shares are between 0 and 1."""
    problems = []
    if r.outcome == "ok" and r.job == "predict" and r.metric not in r.scores:
        named = ", ".join(r.scores) or "none"
        problems.append(f"the task returned no score {r.metric!r}; it has: {named}")
    task = registry.tasks().get(r.task)
    if task is not None and r.job == "predict" and r.metric != task.metric:
        problems.append(f"{r.task} is ranked by {task.metric}, not by {r.metric}")
    if r.outcome == "ok" and r.job == "predict" and not r.rows:
        problems.append("the task predicted no rows")
    if r.scoring == "outside" and r.job == "predict" and r.scores and r.score_s is None:
        problems.append(f"scores without a phase {SCORE}: scoring is inside the wall time")
    beyond = [name for name, v in r.scores.items() if SHARE_SCORES.match(name) and not 0 <= v <= 1]
    beyond += [name for name, v in r.scores.items() if name == "cosine" and abs(v) > 1 + COSINE_SLACK]
    return problems + [f"score {name} is {r.scores[name]:g}" for name in beyond]


def work(r: Record) -> list[str]:
    """Only a run that predicts or fits has work for a row, and its figures do not contradict each other."""
    if r.work is None:
        return []
    problems = []
    if r.job == "bench":
        problems.append("work for a row in job bench")
    if r.work.tree_nodes and not r.work.trees:
        problems.append(f"{r.work.tree_nodes:g} nodes for a row in no trees")
    return problems


def sittings(r: Record) -> list[str]:
    """Only a started prediction of a resumable task has several sittings, and no more starts than sittings."""
    problems, task = [], registry.tasks().get(r.task)
    starts = len(r.samples.get("start", ()))
    if r.job == "predict" and starts > r.sittings:
        problems.append(f"{starts} starts in {r.sittings} sittings")
    if r.sittings == 1:
        return problems
    if r.job != "predict" or r.enforcement == "none":
        problems.append(f"{r.sittings} sittings of a run of job {r.job}, enforcement {r.enforcement}")
    if task is not None and not task.resumable:
        problems.append(f"{r.sittings} sittings, but {r.task} cannot be resumed")
    return problems


def train_scale(r: Record) -> list[str]:
    """Only generated data have a sample of the training rows."""
    if r.train_scale is None or r.data_source == "generated":
        return []
    return [f"train_scale {r.train_scale:g} of {r.data_source} data"]


def bench(r: Record) -> list[str]:
    """Sizes, throughput, least time and gate of a bench record follow from its own figures."""
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
        problems.append(f"{b.threads} threads on {counted(r.machine.cores, 'core')}")
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
            f"runs of {b.flops / b.peak / median(warm):.1f} times the measured peak of FLOPs per second"
        )
    if b.bad_runs and r.gate.status == "passed":
        problems.append(f"gate passed with {b.bad_runs} bad runs")
    return [*problems, bench_gate(r)]


def bench_gate(r: Record) -> str:
    """Why the gate of a bench record does not follow from its scores, or an empty string."""
    if r.precision not in registry.precisions() or not r.scores:
        return ""
    missing = {"cosine", "max_relative_error"} - r.scores.keys()
    if missing:
        return f"ok without the score {', '.join(sorted(missing))}"
    status = gate.judge_bench(r, **registry.bench_gate(r.precision)).gate.status
    return "" if status == r.gate.status else f"gate {r.gate.status}, but by its scores it is {status}"
