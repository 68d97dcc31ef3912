"""The frontier's points, front and chart, from records written by hand."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from buzzer.suite import registry
from buzzer.suite.cli import app
from buzzer.suite.records import gate
from buzzer.suite.records.collection import load_records
from buzzer.suite.records.schema import Record
from buzzer.suite.registry import TaskConfig
from buzzer.suite.report import charts, frontier
from buzzer.suite.run import runner
from buzzer.suite.run.frontier_plan import cuts
from buzzer.suite.run.plan import Run

Make = Callable[..., Record]
ROOT = Path(__file__).parents[3]
MS = 0.001


def run_of(
    make_record: Make, precision: str, accuracy: float, ms: float, layers: int = 0, **more: Any
) -> Record:
    return make_record(
        precision=precision,
        scores={"accuracy": accuracy},
        metric="accuracy",
        samples={"latency": [ms * MS] * 30},
        config={"layers": layers},
        **more,
    )


@pytest.fixture
def records(make_record: Make) -> list[Record]:
    return [
        run_of(make_record, "fp32", 0.96, 4.0),
        run_of(make_record, "int8", 0.955, 2.0, backend="onnxruntime"),
        run_of(make_record, "fp8", 0.97, 1.0, details={"simulated": True}),
        run_of(make_record, "sparse", 0.5, 0.5, outcome="wrong"),
        run_of(make_record, "fp32", 0.95, 3.0, layers=4),
        run_of(make_record, "int8", 0.94, 1.5, layers=4, backend="onnxruntime"),
    ]


def test_the_front_has_the_points_that_no_other_point_beats(records: list[Record]) -> None:
    points = frontier.points(records, 6)
    assert [(p.layers, p.precision) for p in points if p.front] == [(4, "int8"), (6, "int8"), (6, "fp32")]
    assert [p.p50_ms for p in points] == sorted(p.p50_ms for p in points)
    by = {(p.layers, p.precision): p for p in points}
    assert (by[6, "fp8"].outcome, by[6, "fp8"].counts) == ("simulated", False)
    assert (by[6, "sparse"].outcome, by[6, "sparse"].counts) == ("wrong", False)
    whole = frontier.frontier(frontier.points(records, 6), records, 6, "torch_eager")
    assert whole.reference_accuracy == 0.96
    lines = whole.table().lines
    assert lines[-1][:2] == ("*", "6")
    assert lines[-1][5] == "100.00%"
    assert all(len(line) == len(frontier.COLUMNS) for line in lines)


def test_a_slower_point_of_equal_accuracy_is_not_on_the_front(make_record: Make) -> None:
    points = frontier.points([run_of(make_record, "fp32", 0.9, 2), run_of(make_record, "bf16", 0.9, 1)], 6)
    assert [(p.precision, p.front) for p in points] == [("bf16", True), ("fp32", False)]


@pytest.mark.parametrize(
    ("precision", "backend", "details", "simulated"),
    [
        ("int8", "onnxruntime", {"simulated": False}, False),
        ("int8", "onnxruntime", {"simulated": True}, True),
        ("fp8", "fused", {"simulated": False}, False),
        ("fp8", "onnxruntime", {}, True),  # a record without the fact, from an older version
        ("int8", "torch_eager", {}, True),
        ("sparse-int8", "torch_eager", {}, True),
        ("int8-dynamic", "torch_eager", {}, False),
        ("int8", "onnxruntime", {}, False),
    ],
)
def test_simulated_speed_is_a_fact_of_the_record(
    make_record: Make, precision: str, backend: str, details: dict[str, Any], simulated: bool
) -> None:
    """It does not depend on the text of a note."""
    notes = ["rounds to FP8 and multiplies in FP32 here"] if not simulated else ["anything"]
    record = run_of(make_record, precision, 0.9, 1.0, backend=backend, details=details, notes=notes)
    (point,) = frontier.points([record], 6)
    assert (point.outcome == "simulated") == simulated
    assert point.counts != simulated


def test_published_records_are_simulated_if_their_note_says_so() -> None:
    published = [
        r
        for r in load_records(ROOT / "results")
        if r.task == "bert-intent-precision" and "latency" in r.samples
    ]
    simulated = [any("multiplies in FP32" in note for note in r.notes) for r in published]
    assert any(simulated)
    assert [frontier.is_simulated(r) for r in published] == simulated


def test_depths_to_compare_with() -> None:
    assert cuts(6) == [5, 4, 3, 2]
    assert cuts(12) == [9, 6, 3]


def test_the_chart_is_an_image_with_every_point(records: list[Record]) -> None:
    points = frontier.points(records, 6)
    image = ElementTree.fromstring(charts.svg(frontier.chart(points, records, "a <title>")))
    space = "{http://www.w3.org/2000/svg}"
    marks = [e for e in image.iter(f"{space}circle") if len(e)]
    assert len(marks) == len(points)
    for e in marks:
        assert 0 <= float(e.attrib["cx"]) <= charts.WIDTH
        assert 0 <= float(e.attrib["cy"]) <= charts.HEIGHT
    line = image.find(f"{space}polyline")
    assert line is not None
    assert len(line.attrib["points"].split()) == 3
    rows = list(
        csv.DictReader(
            io.StringIO(frontier.frontier(frontier.points(records, 6), records, 6, "torch_eager").to_csv())
        )
    )
    assert [float(r["accuracy"]) for r in rows] == [p.accuracy for p in points]


# ---- gates relative to the FP32 score ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "accuracy", "status"),
    [
        ("bf16", 0.9596, "passed"),
        ("bf16", 0.9594, "failed"),
        ("fp8", 0.9591, "passed"),
        ("fp8", 0.959, "failed"),
        ("int8-qat", 0.951, "passed"),
        ("int8-qat", 0.950, "failed"),
        ("int8-qat", 0.99, "passed"),
        ("fp32", 0.957, "failed"),  # judged by the task's tolerance, which is absolute
    ],
)
def test_a_lower_precision_must_reach_a_share_of_the_score(
    make_record: Make, precision: str, accuracy: float, status: str
) -> None:
    task: TaskConfig = registry.task("bert-intent-precision")
    same = {"task": task.name, "engine": "none", "config": task.params, "config_hash": task.config_hash}
    reference = run_of(make_record, "fp32", 0.96, 1).model_copy(update=same)
    run = run_of(make_record, precision, accuracy, 1, backend="onnxruntime").model_copy(update=same)
    judged = gate.judge(run, task, [reference])
    assert judged.gate.status == status
    assert judged.gate.differences["accuracy"] == pytest.approx(accuracy - 0.96)
    if status == "failed" and precision != "fp32":
        assert judged.outcome == "wrong"
        assert f"is required of {precision}" in judged.message


def test_the_command_line_plans_runs_and_draws(
    make_record: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The runs are replaced by records written by hand. The whole model runs in the requested precisions, the cut ones in FP32 and INT8."""
    sizes = {"vocab_size": 9, "hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"num_hidden_layers": 4}))
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("BUZZER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BUZZER_DATA", raising=False)
    fits: list[int] = []

    def fitted(run: Run, *_: Any) -> None:
        fits.append(run.task.params["layers"])

    def predicted(run: Run, *_: Any) -> Record:
        number = len(list((tmp_path / "out").glob("*/*/*.json")))
        record = run_of(make_record, run.precision, 0.9, 1.0 + number, run.task.params["layers"])
        identity = {"task": run.task.name, "config_hash": run.task.config_hash, "run_id": f"{number:032x}"}
        return record.model_copy(update=identity)

    monkeypatch.setattr(runner, "fit", fitted)
    monkeypatch.setattr(runner, "predict", predicted)
    options = ["--backend", "torch_eager", "--precision", "fp32,bf16", "--rounds", "1", "--json"]
    app(["frontier", str(tmp_path), *options, "--out", str(tmp_path / "out")], standalone_mode=False)
    points = json.loads(capsys.readouterr().out)["points"]
    whole, cut = [(4, "fp32"), (4, "bf16")], [(3, "fp32"), (2, "fp32")]
    assert [(p["layers"], p["precision"]) for p in points] == whole + cut
    assert fits == [0, 3, 2]
    assert len((tmp_path / "out" / "frontier.csv").read_text().splitlines()) == 5
    ElementTree.parse(tmp_path / "out" / "frontier.svg")
