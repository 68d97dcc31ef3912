"""Bars against the time limit. The records of these tests are made up."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from buzzer.errors import UsageError
from buzzer.suite import api
from buzzer.suite.records.schema import Record
from buzzer.suite.report import budget_bars
from buzzer.suite.report.budget_bars import Bar, Panel

Make = Callable[..., Record]
DAY = {"name": "seed-cpu", "cores": 1, "memory_bytes": 20 * 10**9, "time_s": 86400.0}
HALF = {"name": "1c20g30s", "cores": 1, "memory_bytes": 20 * 10**9, "time_s": 30.0}
WORK = {
    "trees": 17075.0,
    "tree_nodes": 136600.0,
    "network_flops": 50e6,
    "table_rows": 10**8,
    "summed_rows": 7 * 10**8,
}
TIMEOUT = {"outcome": "timeout", "message": "the buzzer went", "scores": {}, "gate": {"status": "unscored"}}

MEASURED = "a processor, 1 round"


def run(make: Make, wall: float, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "task": "recsys2021-winners",
        "engine": "polars",
        "metric": "RCE",
        "scores": {"RCE": 14.0},
        "budget": DAY,
    }
    phases = [{"name": "predict", "wall_s": wall, "cpu_s": 1.0, "peak_memory_bytes": 1}]
    fields |= {"rows": 14_500_000, "wall_s": wall, "phases": phases, "samples": {}, "work": WORK}
    return make(**fields | changes)


def mine(records: list[Record]) -> list[Bar]:
    """Our bars of the published job."""
    panel = budget_bars.panels(records)[0]
    assert panel.limit_s == 86400
    assert [(bar.name, bar.text) for bar in panel.groups[0][1]] == [
        ("1 CPU core", "23:40:00"), ("8 CPU cores", "8:24:00"), ("A100 40 GB", "5:30"),
    ]  # fmt: skip
    return panel.groups[1][1]


def test_the_same_job_is_a_plain_bar_and_the_fastest_of_its_task_and_cores(make_record: Make) -> None:
    (bar,) = mine([run(make_record, 20_000.0, engine="pandas"), run(make_record, 18_023.0)])
    assert bar == Bar("1 core, recsys2021-winners", 18_023.0, "cpu", "5:00:23", MEASURED)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"work": WORK | {"tree_nodes": 1370.0}}, "not the same job: trees 1/100"),
        ({"work": None}, "not the same job: rows 1, its work for a row is not recorded"),
        (
            {"work": WORK | {"summed_rows": None}, "train_scale": 0.01},
            "not the same job: lookup tables of 1 % of the training rows",
        ),
        ({"rows": 145_000}, "not the same job: rows 1/100"),
    ],
)
def test_another_job_is_hatched_and_says_how_it_differs(
    make_record: Make, changes: dict[str, Any], note: str
) -> None:
    (bar,) = mine([run(make_record, 100.0, **changes)])
    assert bar.apart and bar.note == f"{note}; {MEASURED}"
    assert "hatch-cpu)" in budget_bars.svg(
        budget_bars.panels([run(make_record, 100.0, **changes)]), budget_bars.LIGHT
    )


def test_a_run_that_was_not_compared_says_so(make_record: Make) -> None:
    (bar,) = mine([run(make_record, 100.0, gate={"status": "no-reference"})])
    assert not bar.apart and bar.note == f"not ranked: no reference run of this size; {MEASURED}"


def test_the_same_job_is_shown_before_a_faster_smaller_one(make_record: Make) -> None:
    smaller = run(make_record, 100.0, work=WORK | {"summed_rows": 7 * 10**6})
    (bar,) = mine([smaller, run(make_record, 200.0)])
    assert (bar.seconds, bar.apart) == (200.0, False)


def test_a_run_with_random_weights_says_so(make_record: Make) -> None:
    (bar,) = mine([run(make_record, 100.0, config={"weights": "random"})])
    assert not bar.apart and bar.note.startswith("random weights")


def test_smaller_runs_are_left_out_beside_those_of_the_true_size(make_record: Make) -> None:
    small = {"rows": 145_000, "scale": 0.01, "data_fingerprint": "e" * 64}
    assert len(mine([run(make_record, 10.0, **small), run(make_record, 90_000.0, **TIMEOUT)])) == 1
    wrong = {"outcome": "wrong", "message": "the score differs", "gate": {"status": "failed"}}
    assert mine([run(make_record, 10.0, **wrong)]) == []


def test_runs_that_their_budget_ended_have_a_panel(make_record: Make) -> None:
    size = {"rows": 217_500, "scale": 0.015, "budget": HALF, "work": None, "task": "recsys2021"}
    slow = run(make_record, 30.1, engine="pandas", **size | TIMEOUT)
    fast = run(make_record, 19.3, **size)
    assert budget_bars.buzzed([fast]) is None
    assert budget_bars.buzzed([slow]) is None
    assert budget_bars.buzzed([slow, fast]) == Panel(
        "recsys2021: 217,500 rows, at most 30 s on 1 core",
        30.0,
        [
            (
                "measured by buzzer on a processor, 1 round",
                [
                    Bar("pandas, PyTorch", 30.1, "failed", "✕ timeout"),
                    Bar("Polars, PyTorch", 19.3, "cpu", "19.3 s"),
                ],
            )
        ],
    )


def test_the_image_has_bars_as_long_as_their_times(make_record: Make, tmp_path: Path) -> None:
    api.report([run(make_record, 43_200.0)], headline=tmp_path / "x.svg")
    for name in ("x.svg", "x-dark.svg"):
        root = ET.parse(tmp_path / name).getroot()
        space = "{http://www.w3.org/2000/svg}"
        bars = {b[0].text: float(b.get("width", 0)) for b in root.iter(f"{space}rect") if len(b)}
        left, right = budget_bars.LEFT, budget_bars.WIDTH - budget_bars.RIGHT
        expected = (right - left) * 43_200 / (1.08 * 86_400)
        assert bars[f"1 core, recsys2021-winners: 12:00:00; {MEASURED}"] == pytest.approx(expected, abs=0.2)
        (limit,) = [x for x in root.iter(f"{space}line") if x.get("stroke-width") == "3"]
        assert float(limit.get("x1", 0)) == pytest.approx(left + 2 * expected, abs=0.2)
        texts = [t for t in root.iter(f"{space}text") if t.text]
        assert all(0 <= float(t.get("x", 0)) <= budget_bars.WIDTH for t in texts)
    assert (tmp_path / "x.svg").read_text() != (tmp_path / "x-dark.svg").read_text()


def test_every_limit_has_round_ticks() -> None:
    for limit in (0.7, 3.0, 15.0, 30.0, 90.0, 600.0, 900.0, 4800.0, 5 * 3600.0, 86_400.0, 7 * 86_400.0):
        panel = Panel("", limit, [("", [])])
        assert 3 <= len(panel.ticks) <= 6
        assert panel.ticks[0] == (0.0, "0")
        assert all(len(text) <= 7 for _, text in panel.ticks)
    assert [text for _, text in Panel("", 15.234, [("", [])]).ticks] == ["0", "5 s", "10 s", "15 s"]


def test_records_without_a_published_time_or_a_timeout_have_no_image(
    make_record: Make, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="published time"):
        api.report([make_record()], headline=tmp_path / "x.svg")
