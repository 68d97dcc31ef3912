from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from buzzer.suite.records import integrity, record
from buzzer.suite.records.schema import Record

Make = Callable[..., Record]
ROOT = Path(__file__).parents[3]
MACHINE = {"cpu": "a processor", "cores": 2, "memory_bytes": 2**34, "gpus": [{"name": "a GPU"}]}
GPU = {"device": "cuda", "gpu_busy_s": 1.0, "gpu_peak_memory_bytes": 10**9, "machine": MACHINE}


def problems(folder: Path, *records: Record, **options: Any) -> list[str]:
    for r in records:
        record.write(r, folder)
    checked = integrity.check(record.paths([folder]), **options)
    return [problem for problems in checked.values() for problem in problems]


def test_a_valid_record_has_no_problem(make_record: Make, tmp_path: Path) -> None:
    assert problems(tmp_path, make_record(), make_record(run_id="b" * 32, **GPU)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": {"predict": [0.5, 0.5]}}, "samples of predict add up to 1.000 s, the phase has 1.500 s"),
        ({"samples": {"dance": [0.5]}}, "samples of dance, which is not a phase"),
        ({"config": {"do": "other"}}, "config_hash is"),
        ({"data_fingerprint": "abc"}, "not a sha256"),
        ({"scores": {"other": 1.0}}, "the task returned no score 'accuracy'; it has: other"),
        (
            {"outcome": "error", "gate": {"status": "unscored"}, "scores": {}},
            "outcome error without a message",
        ),
        ({"budget": {"name": "1c1g1s", "cores": 1, "memory_bytes": 10**9, "time_s": 1.0}}, "ok after 2.0 s"),
        ({"peak_memory_bytes": 3 * 10**9}, "ok with a peak of 3000000000 bytes"),
        ({"schema_minor": 1}, "scores without a phase score"),
        ({"gate": {"status": "passed"}}, "passed without a reference_run"),
        ({"gate": {"status": "failed"}}, "gate failed, outcome ok"),
        ({"outcome": "wrong", "message": "x"}, "outcome wrong, gate reference"),
        ({"device": "cuda", "machine": MACHINE}, "no proof that the GPU was used"),
        (GPU | {"gpu_busy_s": 0.0}, "no sign of GPU use"),
        ({"gpu_peak_memory_bytes": 10**9}, "a run on the CPU with GPU memory"),
        ({"train_scale": 0.1, "data_source": "official"}, "train_scale 0.1 of official data"),
    ],
)
def test_a_contradiction_within_a_record_is_reported(
    make_record: Make, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (problem,) = problems(tmp_path, make_record(**change))
    assert message in problem


def test_a_pass_beyond_the_tolerance_is_reported(make_record: Make, tmp_path: Path) -> None:
    gate = {"status": "passed", "reference_run": "b" * 32, "differences": {"accuracy@4": 0.3}}
    booking = {"task": "booking", "engine": "polars", "metric": "accuracy@4", "scores": {"accuracy@4": 0.4}}
    (problem,) = problems(tmp_path, make_record(**booking, gate=gate))
    assert "accuracy@4 off by more than the task's tolerance" in problem


@pytest.mark.parametrize(("score", "good"), [(0.92, True), (0.88, False)])
def test_a_lower_precision_is_judged_by_its_share(
    make_record: Make, tmp_path: Path, score: float, good: bool
) -> None:
    gate = {"status": "passed", "reference_run": "b" * 32, "differences": {"accuracy": score - 0.925}}
    fields = {"task": "bert-intent-precision", "precision": "int8", "scores": {"accuracy": score}}
    assert (problems(tmp_path, make_record(**fields, gate=gate)) == []) is good


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run_id": "a" * 32, "backend": "onnxruntime"}, "run_id is that of"),
        ({"data_rows": {"train": 5}}, "data_rows differ"),
        ({"seed": 3}, "had other data, parameters, seed or fit"),
        ({"fit_id": "cpu-0"}, "had other data, parameters, seed or fit"),
        ({"scores": {"accuracy": 0.8}}, "gate says accuracy differs by 0"),
        ({"train_scale": 0.1, "gate": {"status": "no-reference"}}, "train_scale differ"),
    ],
)
def test_a_contradiction_between_records_is_reported(
    make_record: Make, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    gate = {"status": "passed", "reference_run": "a" * 32, "differences": {"accuracy": 0.0}}
    other = make_record(**({"run_id": "b" * 32, "gate": gate} | change))
    (problem,) = problems(tmp_path, make_record(), other)
    assert message in problem


@pytest.mark.parametrize(("accuracy", "status", "outcome"), [(0.9, "passed", "ok"), (0.8, "failed", "wrong")])
def test_a_run_is_compared_with_a_reference_that_ran_after_it(
    make_record: Make, tmp_path: Path, accuracy: float, status: str, outcome: str
) -> None:
    booking = {"task": "booking", "metric": "accuracy@4"}
    early = make_record(
        **booking,
        engine="polars",
        run_id="b" * 32,
        gate={"status": "no-reference"},
        scores={"accuracy@4": accuracy},
    )
    reference = make_record(**booking, engine="pandas", scores={"accuracy@4": 0.9})
    alone, both = tmp_path / "alone", tmp_path / "both"
    for folder, records in ((alone, [early]), (both, [early, reference])):
        for r in records:
            record.write(r, folder)
    assert [r.gate.status for r in integrity.good_in(alone)] == ["no-reference"]
    judged = {r.engine: r for r in integrity.good_in(both)}["polars"]
    assert (judged.gate.status, judged.outcome, judged.gate.reference_run) == (
        status,
        outcome,
        reference.run_id,
    )


@pytest.mark.parametrize(
    ("name", "factor", "good"), [("trees", 1.05, True), ("network_flops", 76, False), ("trees", 0, False)]
)
def test_the_work_of_a_run_is_that_of_its_reference(
    make_record: Make, tmp_path: Path, name: str, factor: float, good: bool
) -> None:
    work = {"trees": 360.0, "tree_nodes": 1800.0, "network_flops": 4e4, "table_rows": 120_000}
    gate = {"status": "passed", "reference_run": "a" * 32, "differences": {"accuracy": 0.0}}
    changed = work | {name: factor * work[name]}
    other = make_record(run_id="b" * 32, gate=gate, work=changed)
    found = problems(tmp_path, make_record(work=work), other)
    assert (found == []) is good
    assert good or f"work.{name} differs from that of its reference_run aaaaaaaa" in found


def test_official_files_must_have_the_fingerprint_of_the_record(make_record: Make, tmp_path: Path) -> None:
    r = make_record(data_source="official")
    assert problems(tmp_path, r, fingerprints={"fake": "f" * 64}) == []
    (problem,) = problems(tmp_path, fingerprints={"fake": "e" * 64})
    assert "differs from that of the files of --data" in problem


def test_every_published_record_is_valid() -> None:
    checked = integrity.check(record.paths([ROOT / "results"]))
    assert checked
    assert {path.name: problems for path, problems in checked.items() if problems} == {}


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "old_records").glob("*.json")), ids=lambda p: p.name
)
def test_records_of_earlier_versions_stay_readable(path: Path) -> None:
    assert integrity.check([path]) == {path: []}
