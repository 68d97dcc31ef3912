"""The gate: a run is ranked only if its scores are within the task's tolerance of the reference run's."""

from collections.abc import Iterable
from typing import Any

from buzzer.suite import registry
from buzzer.suite.record import Gate, Record
from buzzer.suite.registry import TaskConfig


def is_reference(record: Record, task: TaskConfig) -> bool:
    """Whether the run used the reference engine and backend, in the reference precision."""
    return (record.engine, record.backend, record.precision) == (
        task.reference.engine,
        task.reference.backend,
        "fp32",
    )


def same_question(a: Record, b: Record) -> bool:
    """Whether two runs had the same data, parameters and seed, so that their scores must agree."""
    return (a.task, a.job, a.data_fingerprint, a.config_hash, a.seed) == (
        b.task,
        b.job,
        b.data_fingerprint,
        b.config_hash,
        b.seed,
    )


def judge(record: Record, task: TaskConfig, others: Iterable[Record]) -> Record:
    """`record` with its gate filled in, and outcome `wrong` if its scores are off the reference's."""
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
    passed = found >= cosine and off <= error
    gate = {"status": "passed" if passed else "failed", "differences": {"cosine": found - 1}}
    update: dict[str, Any] = {"gate": Gate.model_validate(gate)}
    if not passed:
        bad = record.bench.bad_runs if record.bench else 0
        cause = f"{bad} runs left outputs unwritten or not finite; " if bad else ""
        told = f"least cosine {found:.5f} ({cosine} asked for), largest relative error {off:.4g} ({error} allowed)"
        update |= {"outcome": "wrong", "message": cause + told}
    return record.model_copy(update=update)


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
