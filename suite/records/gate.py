"""The gate: a run is ranked only if its scores are within the task's tolerance of the scores of the reference run."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Literal, TypeVar

from buzzer.suite import registry
from buzzer.suite.records import comparable
from buzzer.suite.records.schema import Gate, Record
from buzzer.suite.registry import TaskConfig

Key = TypeVar("Key")
CACHE_RATIO = 2.0  # a session counts as caching its outputs if time on unseen inputs / time on seen inputs is above this
GROWTH_BYTES = 2 << 20  # the driver allocates device memory in blocks of 2 MiB


def is_reference(record: Record, task: TaskConfig) -> bool:
    """Whether the run used the reference engine and backend, in the reference precision and one process."""
    return not record.cluster and (record.engine, record.backend, record.precision) == (
        task.reference.engine,
        task.reference.backend,
        "fp32",
    )


def same_question(a: Record, b: Record) -> bool:
    """Whether two runs had the same data, parameters, seed and fit, so that their scores must agree."""
    return comparable.question(a) == comparable.question(b)


def no_gpu_proof(record: Record) -> str:
    """Why a run on the GPU does not prove that it used the GPU; an empty string if it does, or if the run is on the CPU.

    The engines raise an error rather than fall back to the CPU. Counters verify this: torch allocated memory on the device in the
    run's process, or NVML saw more memory than the process took to open the device. If that amount is not known (clusters, older
    records), NVML must have seen the device busy and memory in use.
    """
    if record.device != "cuda" or record.outcome != "ok":
        return ""
    busy, peak, counted = record.gpu_busy_s, record.gpu_peak_memory_bytes, gpu_bytes(record)
    opened, most = counted.get("opened"), max(peak or 0, counted.get("held", 0))
    grown = bool(busy and peak) if opened is None else most >= opened + GROWTH_BYTES
    if counted.get("torch_peak") or grown:
        return ""
    if busy is None or peak is None:
        return (
            "no proof that the GPU was used: NVML was not available, and the run counted no memory of its own"
        )
    figures = [f"busy {busy:g} s", f"peak memory {peak} bytes"]
    figures += [] if opened is None else [f"{opened} of them by opening the device"]
    return f"no sign of GPU use: {', '.join(figures)}"


def gpu_bytes(record: Record) -> dict[str, int]:
    """The GPU memory that the run measured in its own process, in bytes. Invalid values are left out."""
    counted = record.details.get("gpu_bytes")
    pairs = counted.items() if isinstance(counted, dict) else ()
    return {name: value for name, value in pairs if type(value) is int and value >= 0}


def over_gpu_memory(record: Record) -> str:
    """A message if a run in one process used more GPU memory than its budget allows, else an empty string."""
    limit, peak = record.budget.gpu_memory_bytes, record.gpu_peak_memory_bytes
    if record.outcome != "ok" or record.cluster or limit is None or peak is None or peak <= limit:
        return ""
    return f"took {peak / 1e9:.1f} GB of GPU memory, the budget has {limit / 1e9:.1f} GB"


def judge(record: Record, task: TaskConfig, others: Iterable[Record]) -> Record:
    """`record` with its gate set, and with outcome `wrong` if its scores differ from the reference's by more than the tolerance.

    A GPU run without proof of GPU use is `wrong` as well. `others`: records in which to look for the reference run.
    """
    if record.outcome == "wrong":  # a score is not a finite number
        return record.model_copy(update={"gate": Gate(status="failed")})
    if problem := no_gpu_proof(record):
        update = {"gate": Gate(status="failed"), "outcome": "wrong", "message": problem}
        return record.model_copy(update=update | {"hint": "`buzzer env` shows what is missing for GPU runs"})
    if problem := over_gpu_memory(record):
        update = {"gate": Gate(status="unscored"), "outcome": "device-oom", "message": problem}
        return record.model_copy(
            update=update | {"hint": "CUDA's own context counts: allow half a gigabyte for it"}
        )
    if record.outcome != "ok" or not record.scores:
        return record.model_copy(update={"gate": Gate(status="unscored")})
    if record.job == "bench":  # each of its runs was compared with the FP32 reference
        return judge_bench(record, **registry.bench_gate(record.precision))
    if is_reference(record, task):
        return record.model_copy(update={"gate": Gate(status="reference")})
    references = [
        o for o in others if o.outcome == "ok" and is_reference(o, task) and same_question(o, record)
    ]
    if not references:
        return record.model_copy(update={"gate": Gate(status="no-reference")})
    reference = max(references, key=lambda o: o.created)
    if record.precision in task.relative:
        return compare_share(record, reference, task.metric, task.relative[record.precision])
    return compare(record, reference, task.tolerance)


def late(records: Mapping[Key, Record]) -> dict[Key, Record]:
    """The records, of which those that had no reference when they ended are judged again if it is among them now."""
    return {
        key: judge(r, registry.task(r.task), records.values()) if lacks_reference(r) else r
        for key, r in records.items()
    }


def lacks_reference(r: Record) -> bool:
    """Whether a run's scores could be compared with a reference, but were not."""
    return r.job == "predict" and r.gate.status == "no-reference" and r.task in registry.tasks()


def compare_share(record: Record, reference: Record, metric: str, least: float) -> Record:
    """`record`, of a lower precision, with its gate set. Its ranked score must be at least `least` times the reference's."""
    score, expected = record.scores.get(metric), reference.scores[metric]
    passed = score is not None and score >= least * expected
    differences = {k: record.scores[k] - v for k, v in reference.scores.items() if k in record.scores}
    status = "passed" if passed else "failed"
    gate = Gate.model_validate(
        {"status": status, "reference_run": reference.run_id, "differences": differences}
    )
    if passed:
        return record.model_copy(update={"gate": gate})
    share = "" if score is None else f"{score:.5f}, {score / expected:.2%} of the reference's {expected:.5f}"
    message = f"{metric} is {share or 'missing'}; {least:.2%} is required of {record.precision}"
    return record.model_copy(update={"gate": gate, "outcome": "wrong", "message": message})


def judge_bench(record: Record, cosine: float, error: float) -> Record:
    """A bench record with its gate set. Its outputs need at least this `cosine` with the FP32 reference and at most this relative
    `error`."""
    least_cosine, largest_error = record.scores["cosine"], record.scores["max_relative_error"]
    caching = caches_outputs(record.samples)
    passed = least_cosine >= cosine and largest_error <= error and not caching
    status: Literal["passed", "failed"] = "passed" if passed else "failed"
    judged = record.model_copy(update={"gate": Gate(status=status, differences={"cosine": least_cosine - 1})})
    if passed:
        return judged
    bad = record.bench.bad_runs if record.bench else 0
    cause = f"{bad} runs left outputs unwritten or not finite; " if bad else ""
    cause += f"least cosine {least_cosine:.5f} ({cosine} required), "
    cause += f"largest relative error {largest_error:.4g} ({error} allowed)"
    return judged.model_copy(update={"outcome": "wrong", "message": caching or cause})


def caches_outputs(samples: Mapping[str, Sequence[float]]) -> str:
    """A message if a bench run is so much slower on unseen inputs that its session must cache outputs, else an empty string.

    Each unseen input needs as much work as the seen input of its pair. Up to a quarter of the pairs may differ for other reasons.
    """
    unseen, seen = samples.get("unseen_run", []), samples.get("seen_run", [])
    slower = sum(a > CACHE_RATIO * b for a, b in zip(unseen, seen, strict=False))
    if not unseen or 4 * slower < 3 * len(unseen):
        return ""
    times = f"{1e3 * median(unseen):.3g} ms on unseen inputs, {1e3 * median(seen):.3g} ms on seen ones"
    return f"the session caches outputs: {times}"


def compare(record: Record, reference: Record, tolerance: float) -> Record:
    """`record` with its gate set by comparison with `reference`: it must have every score of the reference, within `tolerance`."""
    missing = sorted(reference.scores.keys() - record.scores.keys())
    differences = {k: record.scores[k] - v for k, v in reference.scores.items() if k in record.scores}
    differing = [k for k, d in differences.items() if not abs(d) <= tolerance]
    status = "failed" if differing or missing else "passed"
    gate = Gate.model_validate(
        {"status": status, "reference_run": reference.run_id, "differences": differences}
    )
    if status == "passed":
        return record.model_copy(update={"gate": gate})
    causes = [
        f"{k} is {record.scores[k]:.5f}, the reference has {reference.scores[k]:.5f}" for k in differing
    ]
    causes += [f"{k} is missing" for k in missing]
    message = "; ".join(causes) + f" (tolerance {tolerance})"
    return record.model_copy(update={"gate": gate, "outcome": "wrong", "message": message})
