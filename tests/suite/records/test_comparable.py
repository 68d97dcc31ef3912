"""Runs that differ in a key of comparability are never compared; other differences are noted."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from buzzer.suite.analysis import comparison, regress
from buzzer.suite.bench import groups
from buzzer.suite.records import comparable, gate, repetitions
from buzzer.suite.records.schema import Record
from buzzer.suite.registry import params_hash
from buzzer.suite.report import (
    compare_json,
    compare_text,
    leaderboard,
    page,
    page_bench,
    page_runs,
    readme,
    summary,
)
from buzzer.suite.run.plan import TaskSelection

Make = Callable[..., Record]
Choose = Callable[..., TaskSelection]
OTHER = {"do": "other"}
MACHINE = {"cpu": "a processor", "simd": "AVX-512", "cores": 2, "memory_bytes": 2**34, "gpus": []}
DIFFERENT: dict[str, dict[str, Any]] = {
    "task": {"task": "another"},
    "job": {"job": "fit"},
    "data": {"data_fingerprint": "e" * 64},
    "parameters": {"config": OTHER, "config_hash": params_hash(OTHER)},
    "seed": {"seed": 1},
    "training sample": {"train_scale": 0.1},
    "scale": {"scale": 0.5},
    "data source": {"data_source": "official"},
    "machine": {"machine": MACHINE},
    "scoring": {"schema_minor": 1},
    "enforcement": {"enforcement": "polled"},
    "fit": {"fit_id": "cpu-1"},
}
TIMES = [name for name in DIFFERENT if name not in ("enforcement", "fit")]
NOTED = {  # what differs -> the note
    "commit": ({"git_commit": "b" * 40}, "records of 2 commits: bbbbbbb (1 run), an installed package (1 run)"),
    "dirty": ({"git_commit": "b" * 40 + "+dirty"}, "records of 2 commits: bbbbbbb+dirty (1 run), an installed package (1 run)"),
    "versions": ({"versions": {"python": "3.12", "torch": "2.13"}}, "library versions differ: python 3.11 and 3.12"),
    "enforcement": ({"enforcement": "polled"}, "limits checked by polling in 1 of 2 runs, not enforced by the kernel"),
    "system": ({"machine": MACHINE | {"simd": "AVX2", "system": "Linux 7", "arch": "x86_64"}}, "system: Linux and Linux 7"),
}  # fmt: skip


def two(make: Make, change: dict[str, Any], **common: Any) -> list[Record]:
    """A run, and a newer repetition with a difference."""
    new = {"run_id": "b" * 32, "repeat": 1, "created": datetime(2026, 1, 3, tzinfo=UTC)}
    return [make(**common), make(**common | new | change)]


def test_every_key_is_tested() -> None:
    assert {*comparable.TIMES, *comparable.LIMITS, *comparable.QUESTION} == set(DIFFERENT)


@pytest.mark.parametrize("key", TIMES)
def test_no_board_holds_both(make_record: Make, key: str) -> None:
    groups = repetitions.boards(two(make_record, DIFFERENT[key])).values()
    assert all(len(group) == 1 for group in groups)
    assert len(groups) == (1 if key == "job" else 2)
    assert len(page_runs.boards(two(make_record, DIFFERENT[key]), {})) == len(groups)


@pytest.mark.parametrize("key", TIMES)
def test_no_comparison_holds_both(make_record: Make, key: str) -> None:
    records = two(make_record, DIFFERENT[key])
    cells = [
        cell
        for task in {r.task for r in records}
        for group in comparison.groups(records, task)
        for row in group.cells.values()
        for cell in row.values()
    ]
    assert all(len(cell.records) == 1 for cell in cells)


@pytest.mark.parametrize("key", [*TIMES, "enforcement"])
def test_an_older_record_that_differs_is_not_compared_with(make_record: Make, key: str) -> None:
    old, new = two(make_record, DIFFERENT[key])
    for group in comparison.groups([new], new.task):
        assert regress.changes(group, [old], [regress.Threshold("wall", 0.0)], []) == []
    (group,) = comparison.groups([old], "fake")
    assert len(regress.changes(group, [old], [regress.Threshold("wall", 0.0)], [])) == 1


@pytest.mark.parametrize("key", [*TIMES, "enforcement"])
def test_runs_that_differ_are_not_an_aa_pair(make_record: Make, key: str) -> None:
    assert len(comparison.aa_pairs(two(make_record, {"control": True, "repeat": 0}))) == 1
    assert comparison.aa_pairs(two(make_record, DIFFERENT[key] | {"control": True, "repeat": 0})) == []


@pytest.mark.parametrize("key", ["machine", "scoring", "enforcement"])
def test_noise_comes_from_the_same_conditions(make_record: Make, key: str) -> None:
    pairs = [
        make_record(repeat=i, control=control, run_id=f"{i}{control:d}" * 16)
        for i in range(3)
        for control in (0, 1)
    ]
    assert comparison.noise(pairs, make_record(), 1) is not None
    assert comparison.noise(pairs, make_record(**DIFFERENT[key]), 1) is None


@pytest.mark.parametrize("key", ["task", "job", "data", "parameters", "seed", "fit"])
def test_no_gate_compares_both(make_record: Make, choose: Choose, key: str) -> None:
    reference, other = two(make_record, DIFFERENT[key])
    judged = gate.judge(other.model_copy(update={"backend": "onnxruntime"}), choose().task, [reference])
    assert judged.gate.status == "no-reference"


SIZES = {"batch": 1, "seq": 128, "lengths": "fixed", "scenario": "", "inputs": 16, "model_hash": "abc"}


@pytest.mark.parametrize(
    ("change", "boards"),
    [
        *(
            ({"config": SIZES | {name: value}}, 2)
            for name, value in [("batch", 2), ("seq", 64), ("lengths", "real")]
        ),
        *(({"config": SIZES | {name: value}}, 2) for name, value in [("inputs", 2), ("model_hash", "def")]),
        ({"config": SIZES | {"count": 99}}, 1),
        ({"config": SIZES | {"packing": "packed"}}, 1),
        ({"config": SIZES | {"model": {"path": "/another/place"}}}, 1),
        ({"device": "cuda"}, 2),
        *((DIFFERENT[name], 2) for name in ("task", "machine", "seed", "scoring")),
        (NOTED["commit"][0], 1),
    ],
)
def test_bench_tables_hold_one_kind_of_run(make_record: Make, change: dict[str, Any], boards: int) -> None:
    assert len(groups.boards(two(make_record, change, job="bench", config=SIZES))) == boards


@pytest.mark.parametrize("name", [*NOTED])
def test_differences_are_noted_wherever_records_are_compared(
    make_record: Make, choose: Choose, name: str
) -> None:
    change, note = NOTED[name]
    records = two(make_record, change)
    assert comparable.differences(records) == [note]
    assert comparable.differences(records[:1]) == []
    assert f"- {note}" in leaderboard.markdown(records)
    assert note in page.html(records, {})
    assert "Some boards hold records of different commits" in readme.result_table(
        summary.summaries(records), 1
    )
    (group,) = comparison.groups(records, "fake")
    result = comparison.compare(group, choose().task, None, {}, records)
    assert note in compare_text.markdown(result, [])
    assert compare_json.data(result, []).differ == [note]
    bench = two(make_record, change, job="bench", config=SIZES)
    assert f"- {note}" in leaderboard.markdown(bench)


def test_the_notes_of_a_board_are_on_the_runs_that_it_shows(make_record: Make) -> None:
    """The newest of each round: another commit's run that a newer one replaces is not named."""
    change, note = NOTED["commit"]
    old, new = two(make_record, change)
    again = old.model_copy(
        update={"git_commit": new.git_commit, "run_id": "9" * 32, "created": old.created + timedelta(days=1)}
    )
    assert f"- {note}" in leaderboard.markdown([old, new])
    assert note not in leaderboard.markdown([old, new, again])


@pytest.mark.parametrize("name", [n for n in NOTED if n != "enforcement"])
def test_a_change_says_what_else_changed(make_record: Make, name: str) -> None:
    change, note = NOTED[name]
    old, new = two(make_record, change)
    (group,) = comparison.groups([new], "fake")
    (changed,) = regress.changes(group, [old], [regress.Threshold("wall", 0.0)], [])
    assert changed.differ == (note,)


def test_different_fits_of_one_job_are_noted(make_record: Make) -> None:
    """Older records do not name a fit, and each size has a different fit."""
    one, other = two(make_record, {"fit_id": "cpu-2"}, fit_id="cpu-1")
    assert comparable.differences([one, other]) == ["runs of 2 fits"]
    assert comparable.differences([one, other.model_copy(update={"fit_id": None})]) == []
    assert comparable.differences([one, other.model_copy(update={"data_fingerprint": "e" * 64})]) == []


def test_a_run_that_was_not_started_differs_in_nothing(make_record: Make) -> None:
    missing = {"enforcement": "none", "outcome": "unsupported", "wall_s": 0.0, "phases": [], "samples": {}}
    assert comparable.differences(two(make_record, NOTED["commit"][0] | missing)) == []


def test_layers_of_two_seeds_are_two_charts(make_record: Make) -> None:
    """A chart of whole and cut models has one seed, data set, machine and rule of timing."""
    fits = [
        make_record(job="fit", config={"layers": 0}, details={"layers": 6}, **c) for c in ({}, {"seed": 1})
    ]
    runs = [
        make_record(config={"layers": n}, samples={"latency": [0.01]}, run_id=f"{n}" * 32, seed=n)
        for n in (0, 1)
    ]
    assert page_bench.frontiers([*fits, *runs]) == []
