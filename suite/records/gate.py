"""The gate: a run is ranked only if its scores are within the task's tolerance of the reference run's."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from buzzer.suite import registry
from buzzer.suite.records import comparable
from buzzer.suite.records.schema import Gate, Record
from buzzer.suite.registry import TaskConfig

MEMORY = 2.0  # how many times slower a bench run on unseen inputs is where the session keeps answers
GROWTH_BYTES = 2 << 20  # the driver gives device memory in pieces of 2 MiB


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
    """Why a run on the GPU cannot be believed to have used it; empty for one that shows its use, or on the CPU.

    The engines raise rather than fall back to the CPU; this holds them to it by counters: torch allocated on the device in the run's
    process, or NVML saw more memory than the process took to open the device. Where it is not known what that took (clusters, older
    records), NVML must have seen the device at work and memory taken.
    """
    if record.device != "cuda" or record.outcome != "ok":
        return ""
    busy, peak, own = record.gpu_busy_s, record.gpu_peak_memory_bytes, gpu_bytes(record)
    opened, most = own.get("opened"), max(peak or 0, own.get("held", 0))
    grown = bool(busy and peak) if opened is None else most >= opened + GROWTH_BYTES
    if own.get("torch_peak") or grown:
        return ""
    if busy is None or peak is None:
        return "no proof that the GPU was used: NVML was not there to watch it, and the run counted no memory of its own"
    told = [f"busy {busy:g} s", f"peak memory {peak} bytes"]
    told += [] if opened is None else [f"{opened} of them by opening the device"]
    return f"no sign of GPU use: {', '.join(told)}"


def gpu_bytes(record: Record) -> dict[str, int]:
    """What the run told of GPU memory of its own process; empty in records without, and for what is no number."""
    told = record.details.get("gpu_bytes")
    pairs = told.items() if isinstance(told, dict) else ()
    return {name: value for name, value in pairs if type(value) is int and value >= 0}


def over_gpu_memory(record: Record) -> str:
    """That a run in one process took more GPU memory than its budget has; empty where it did not, or nobody watched."""
    limit, peak = record.budget.gpu_memory_bytes, record.gpu_peak_memory_bytes
    if record.outcome != "ok" or record.cluster or limit is None or peak is None or peak <= limit:
        return ""
    return f"took {peak / 1e9:.1f} GB of GPU memory, the budget has {limit / 1e9:.1f} GB"


def judge(record: Record, task: TaskConfig, others: Iterable[Record]) -> Record:
    """`record` with its gate filled in, and outcome `wrong` if its scores are off the reference's.

    A GPU run without proof of GPU use is `wrong` as well.
    """
    if record.outcome == "wrong":  # a score that is no number
        return record.model_copy(update={"gate": Gate(status="failed")})
    if problem := no_gpu_proof(record):
        update = {"gate": Gate(status="failed"), "outcome": "wrong", "message": problem}
        return record.model_copy(update=update | {"hint": "`buzzer env` shows what is missing for GPU runs"})
    if problem := over_gpu_memory(record):
        update = {"gate": Gate(status="unscored"), "outcome": "device-oom", "message": problem}
        return record.model_copy(
            update=update | {"hint": "CUDA's own context counts: leave it half a gigabyte"}
        )
    if record.outcome != "ok" or not record.scores:
        return record.model_copy(update={"gate": Gate(status="unscored")})
    if record.job == "bench":  # was held against the FP32 reference run by run
        return judge_bench(record, **registry.bench_gate(record.precision))
    if is_reference(record, task):
        return record.model_copy(update={"gate": Gate(status="reference")})
    match = [o for o in others if o.outcome == "ok" and is_reference(o, task) and same_question(o, record)]
    if not match:
        return record.model_copy(update={"gate": Gate(status="no-reference")})
    reference = max(match, key=lambda o: o.created)
    if record.precision in task.relative:
        return compare_share(record, reference, task.metric, task.relative[record.precision])
    return compare(record, reference, task.tolerance)


def compare_share(record: Record, reference: Record, metric: str, least: float) -> Record:
    """`record` of a lower precision judged by the ranked score: at least the share `least` of the reference's."""
    score, wanted = record.scores.get(metric), reference.scores[metric]
    passed = score is not None and score >= least * wanted
    differences = {k: record.scores[k] - v for k, v in reference.scores.items() if k in record.scores}
    status = "passed" if passed else "failed"
    gate = Gate.model_validate(
        {"status": status, "reference_run": reference.run_id, "differences": differences}
    )
    if passed:
        return record.model_copy(update={"gate": gate})
    told = (
        "missing" if score is None else f"{score:.5f}, {score / wanted:.2%} of the reference's {wanted:.5f}"
    )
    message = f"{metric} is {told}; {least:.2%} is asked of {record.precision}"
    return record.model_copy(update={"gate": gate, "outcome": "wrong", "message": message})


def judge_bench(record: Record, cosine: float, error: float) -> Record:
    """A bench record judged by its outputs against the FP32 reference's: `cosine` at least, `error` at most."""
    found, off = record.scores["cosine"], record.scores["max_relative_error"]
    kept = keeps_answers(record.samples)
    passed = found >= cosine and off <= error and not kept
    gate = {"status": "passed" if passed else "failed", "differences": {"cosine": found - 1}}
    update: dict[str, Any] = {"gate": Gate.model_validate(gate)}
    if not passed:
        bad = record.bench.bad_runs if record.bench else 0
        cause = f"{bad} runs left outputs unwritten or not finite; " if bad else ""
        told = f"least cosine {found:.5f} ({cosine} asked for), largest relative error {off:.4g} ({error} allowed)"
        update |= {"outcome": "wrong", "message": kept or cause + told}
    return record.model_copy(update=update)


def keeps_answers(samples: Mapping[str, Sequence[float]]) -> str:
    """Why a bench run's times are not those of its work: it is far slower on inputs that it has not seen; empty where it is not.

    Each unseen input is as costly as the one it stands beside. One in four pairs may be off by other causes.
    """
    new, again = samples.get("unseen_run", []), samples.get("seen_run", [])
    slower = sum(a > MEMORY * b for a, b in zip(new, again, strict=False))
    if not new or 4 * slower < 3 * len(new):
        return ""
    return (
        f"the session keeps answers: {1e3 * median(new):.3g} ms on inputs that it has not seen, {1e3 * median(again):.3g} ms on those"
        " that it has"
    )


def compare(record: Record, reference: Record, tolerance: float) -> Record:
    """`record` judged against `reference`: every score of the reference must be there and near."""
    missing = sorted(reference.scores.keys() - record.scores.keys())
    differences = {k: record.scores[k] - v for k, v in reference.scores.items() if k in record.scores}
    far = [k for k, d in differences.items() if not abs(d) <= tolerance]
    status = "failed" if far or missing else "passed"
    gate = Gate.model_validate(
        {"status": status, "reference_run": reference.run_id, "differences": differences}
    )
    if status == "passed":
        return record.model_copy(update={"gate": gate})
    told = [f"{k} is {record.scores[k]:.5f}, the reference has {reference.scores[k]:.5f}" for k in far]
    told += [f"{k} is missing" for k in missing]
    message = "; ".join(told) + f" (tolerance {tolerance})"
    return record.model_copy(update={"gate": gate, "outcome": "wrong", "message": message})
