"""The protocol between harness and worker: each reads what the other has written."""

from dataclasses import replace
from pathlib import Path

import pytest

from buzzer.models.api.context import BenchResult, RunContext, Work
from buzzer.suite.run import events
from buzzer.suite.run.events import Done, Event, Failed, PartDone, PhaseEnded, PhaseStarted
from buzzer.suite.run.spec import WorkerSpec

BENCH = BenchResult(
    batch=1, seq=8, lengths="fixed", packing="padded", scenario="", inputs=2, rows=16, flops=10, bytes_moved=20, kernels=None,
    floor_s=0.1, bandwidth=1e10, peak=None, threads=1, affinity=[0, 1], denormals="kept", checked_runs=9, bad_runs=0,
)  # fmt: skip
DONE = Done(1.5, 0.01, {"accuracy": 0.9}, 10, {"sizes": [1, 2]}, ["a note"], {"query": [0.1]}, ["a.csv"])
EVENTS: list[Event] = [
    PhaseStarted("load", 0.5, 100.25),
    PhaseEnded("load", 1.25, 0.75, 1 << 20, [0.5, 0.75]),
    DONE,
    replace(DONE, bench=BENCH),
    replace(DONE, bench=replace(BENCH, loadgen={"result": "VALID", "line": "", "summary": {}})),
    replace(DONE, work=Work(360.0, 1800.0, 4e4, 120_000)),
    Failed("unsupported", "no CUDA device: Ä", "use --engine polars", {"user_error": True}),
    Failed("error", "two\nlines", ""),
    PartDone(0.25, 1.5),
]


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_read_as_it_was_written(event: Event) -> None:
    line = events.to_line(event)
    assert line.count("\n") == 1 and line.endswith("\n")
    assert events.parse(line) == event


@pytest.mark.parametrize("event", EVENTS[:4])
@pytest.mark.parametrize("value", ['"text"', "null", "{}", "true"])
def test_a_field_of_another_type_is_rejected(event: Event, value: str) -> None:
    """Tested on the first number of each event."""
    line, number = events.to_line(event), event.at_s if isinstance(event, PhaseStarted) else event.wall_s  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="not an event"):
        events.parse(line.replace(f'_s": {number}', f'_s": {value}', 1))


def test_a_spec_is_read_as_it_was_written(tmp_path: Path) -> None:
    folders = {"data": tmp_path / "data", "work": tmp_path / "work", "out": tmp_path / "out"}
    settings = {"params": {"eta": 0.1, "layers": [1, 2]}, "workers": 2, "gpu_memory_bytes": 10**9}
    context = RunContext(
        "t", "cudf", "fused", "int8", "cuda", **folders, scale=0.5, seed=3, threads=4, **settings
    )  # type: ignore[arg-type]
    spec = WorkerSpec(context, "predict", "some.module:TASK", tmp_path / "events.jsonl")
    assert WorkerSpec.from_json(spec.to_json()) == spec
