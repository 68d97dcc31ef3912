"""Progress on terminals of several widths and in a pipe."""

import io
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from buzzer.suite.report import display
from buzzer.suite.report.display import Display
from buzzer.suite.run.plan import TaskSelection, fit_run, predict_runs
from buzzer.suite.run.progress import Part

Choose = Callable[..., TaskSelection]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock whose seconds a test sets."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_pipe_gets_a_line_every_ten_seconds(choose: Choose, clock: list[float]) -> None:
    written = io.StringIO()
    shown = Display(Console(file=written, width=80))
    timed, fit = predict_runs(choose(budget="1c2g30s"))[0], fit_run(choose())
    for second in range(25):
        clock[0] = float(second)
        shown.phase(timed, "predict", second)
    shown.clear()
    clock[0] = 40.0
    shown.phase(replace(fit, expected_s=100.0), "fit", 15.0)
    shown.clear()
    clock[0] = 60.0
    shown.preparing(0.25, "train.csv")
    assert written.getvalue().splitlines() == [
        f"  {timed.label}: predict  buzzer in 0:20",
        f"  {timed.label}: predict  buzzer in 0:10",
        f"  {fit.label}: fit  0:15 of about 1:40",
        "  data: train.csv  25%",
    ]


def test_a_run_says_how_long_it_should_take(choose: Choose, clock: list[float]) -> None:
    written = io.StringIO()
    shown = Display(Console(file=written, width=200))
    clock[0] = display.LINE_S
    shown.phase(replace(predict_runs(choose(budget="1c2g30s"))[0], expected_s=12.0), "predict", 5.0)
    assert written.getvalue().rstrip().endswith("predict  buzzer in 0:25, done in about 0:07")


@pytest.mark.parametrize("width", [80, 120])
def test_bars_fit_the_terminal(choose: Choose, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True)
    shown = Display(console)
    shown.planned(12)
    run = predict_runs(choose())[0]
    long = replace(run, task=run.task.model_copy(update={"name": "recsys2021-winners"}), expected_s=1200.0)
    shown.phase(long, "networks", 60.0)
    lines = console.render_lines(shown._bars.get_renderable(), pad=False)
    texts = ["".join(segment.text for segment in line) for line in lines]
    assert len(texts) == 2
    assert max(map(cell_len, texts)) <= width
    assert "buzzer in" in texts[1] and "recsys2021" in texts[1]


def test_a_fit_without_earlier_runs_shows_how_much_of_its_phase_is_done(
    choose: Choose, clock: list[float]
) -> None:
    written, fit = io.StringIO(), fit_run(choose())
    shown = Display(Console(file=written, width=80))
    for part in (None, Part(0.0, None), Part(0.25, 90.0)):
        clock[0] += display.LINE_S
        shown.phase(fit, "networks", 65.0, part)
    clock[0] += display.LINE_S
    shown.phase(replace(fit, expected_s=100.0), "networks", 65.0, Part(0.25, 90.0))
    assert written.getvalue().splitlines() == [
        f"  {fit.label}: networks  1:05",
        f"  {fit.label}: networks 0%  1:05",
        f"  {fit.label}: networks 25%, phase done in about 1:30  1:05",
        f"  {fit.label}: networks  1:05 of about 1:40",
    ]
