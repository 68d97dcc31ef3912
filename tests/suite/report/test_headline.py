"""The published job stage by stage, with and without a run of ours at its size. The records of these tests are made up."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from buzzer.suite.records.schema import Record
from buzzer.suite.report import headline, leaderboard, page
from buzzer.suite.report.headline import WHOLE, Headline

Make = Callable[..., Record]
DAY = {"name": "seed-cpu", "cores": 1, "memory_bytes": 20 * 10**9, "time_s": 86400.0}
WORK = {
    "trees": 17_075.0,
    "tree_nodes": 136_600.0,
    "network_flops": 50e6,
    "table_rows": 10**8,
    "summed_rows": 719_714_693,
}
PHASES = {
    "start": 3.0,
    "load": 900.0,
    "preprocess": 400.0,
    "features": 300.0,
    "transfer": 120.0,
    "trees": 7000.0,
    "networks": 9000.0,
    "write": 300.0,
}
# The phases by the stages of configs/anchors.yaml, added up by hand.
STAGES = {"preprocess": 400.0, "features": 1320.0, "XGBoost": 7000.0, "networks": 9000.0, "other": 303.0}


def run_of(make: Make, **changes: Any) -> Record:
    """A run of the published job, at its size."""
    phases = [
        {"name": name, "wall_s": wall, "cpu_s": 1.0, "peak_memory_bytes": 1} for name, wall in PHASES.items()
    ]
    fields = {
        "task": "recsys2021-full",
        "engine": "polars",
        "metric": "RCE",
        "scores": {"RCE": 14.0},
        "gate": {"status": "reference"},
        "budget": DAY,
        "rows": 14_500_000,
        "wall_s": 18_023.0,
        "phases": phases,
        "samples": {},
        "work": WORK,
    }
    return make(**(fields | changes))


def of(records: list[Record]) -> Headline:
    (only,) = headline.headlines(records)
    return only


def test_the_published_stages_are_shown_without_a_run_of_ours(make_record: Make) -> None:
    h = of([run_of(make_record, rows=14_500)])
    assert [(s.name, s.kind) for s in h.series] == [
        (f"NVIDIA, {where}", "published") for where in ("8 CPU cores", "A100 40 GB", "1 CPU core")
    ]
    assert h.stages == ["preprocess", "features", "XGBoost", "networks", WHOLE]
    assert h.table().lines == [
        ("preprocess", "4,155", "69", ""),
        ("features", "10,334", "119", ""),
        ("XGBoost", "7,193", "43", ""),
        ("networks", "8,540", "100", ""),
        (WHOLE, "30,223", "330", "85,200"),
    ]
    assert headline.MISSING in h.table().notes[0] and headline.MISSING in h.chart().summary


@pytest.mark.parametrize(
    "other",
    [
        {"rows": 13_000_000},
        {"work": None},
        {"work": WORK | {"tree_nodes": 1800.0}},
        {"work": WORK | {"network_flops": 4e4}},
        {"work": WORK | {"summed_rows": 7_197_147}},
        {"budget": DAY | {"name": "2c20g24h", "cores": 2}},
        {"outcome": "timeout", "message": "the buzzer went", "scores": {}, "gate": {"status": "unscored"}},
        {"gate": {"status": "failed"}, "outcome": "wrong", "message": "the score differs"},
        {"control": True},
        {"task": "booking", "metric": "accuracy@4", "scores": {"accuracy@4": 0.5}},
    ],
)
def test_another_run_is_not_shown_as_ours(make_record: Make, other: dict[str, Any]) -> None:
    smaller = run_of(make_record, rows=14_500, run_id="b" * 32)
    assert {s.kind for s in of([run_of(make_record, **other), smaller]).series} == {"published"}


def test_the_fastest_run_at_the_true_size_has_bars_of_the_same_stages(make_record: Make) -> None:
    slower = [{"name": "trees", "wall_s": 20_000.0, "cpu_s": 1.0, "peak_memory_bytes": 1}]
    records = [
        run_of(make_record, backend="onnxruntime", run_id="b" * 32, wall_s=20_000.0, phases=slower),
        run_of(make_record),
    ]
    h = of(records)
    assert (h.series[-1].name, h.series[-1].kind) == ("buzzer, 1 core", "cpu")
    assert h.series[-1].seconds == STAGES | {WHOLE: 18_023.0}
    assert sum(STAGES.values()) == 18_023.0
    chart = h.chart()
    assert headline.MISSING not in chart.summary and "24:00:00" in chart.summary
    marks = {(m.series, m.text.split(", ")[-1]): m for m in chart.marks if m.series == "buzzer, 1 core"}
    assert len(marks) == 6
    (limit,) = [p for p in chart.paths if p.kind == "limit"]
    right = float(limit.points.split(",")[0])
    at = {m.text: m.x for m in chart.marks}
    assert at["buzzer, 1 core, whole job: 18,023 s"] < at["NVIDIA, 1 CPU core, whole job: 85,200 s"] < right
    assert right == chart.x.at(86_400)
    for bar, mark in zip([p for p in chart.paths if p.series], chart.marks, strict=True):
        ends = [tuple(map(float, point.split(","))) for point in bar.points.split()]
        assert ends[0][0] == 0 and ends[1][0] == pytest.approx(mark.x) and bar.series == mark.series


def test_a_run_without_a_reference_of_its_size_says_so(make_record: Make) -> None:
    alone = {"gate": {"status": "no-reference"}, "run_id": "c" * 32, "engine": "pandas"}
    where = "a processor (AVX2), 2 cores, 16 GiB, no GPU, 1 round"
    assert of([run_of(make_record, **alone)]).series[-1].measured == f"{where}, not ranked: no reference run"
    both = of([run_of(make_record, **alone), run_of(make_record)])
    assert both.series[-1].measured == where and both.note.endswith(f" buzzer, 1 core: {where}.")


def test_a_run_with_random_weights_says_so(make_record: Make) -> None:
    shown = of([run_of(make_record, config={"weights": "random"})])
    assert shown.series[-1].measured.endswith("1 round, random weights")


def test_bars_of_one_stage_do_not_overlap(make_record: Make) -> None:
    chart = of([run_of(make_record)]).chart()
    heights = sorted(mark.y for mark in chart.marks)
    assert len(set(heights)) == len(heights) and min(heights) > 0 and max(heights) < 100
    assert min(b - a for a, b in itertools.pairwise(heights)) > 2


def test_every_renderer_shows_the_same_figures(make_record: Make) -> None:
    records = [run_of(make_record)]
    texts = {mark.text for mark in of(records).chart().marks}
    html = page.html(records, {})
    assert all(f'aria-label="{text}"' in html for text in texts)
    assert "| whole job | 30,223 | 330 | 85,200 | 18,023 |" in leaderboard.markdown(records)


def test_records_of_other_tasks_have_no_headline(make_record: Make) -> None:
    assert headline.headlines([make_record()]) == []
    assert 'id="headline"' not in page.html([make_record()], {})
