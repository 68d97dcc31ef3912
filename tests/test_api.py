"""The public functions: `import buzzer` is light, and the examples in docstrings and docs/api.md run."""

import doctest
import importlib.util
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import buzzer
from buzzer.errors import UsageError
from buzzer.suite import api, requests
from buzzer.suite.report import display
from buzzer.suite.report.display import Display, Quiet, observing
from buzzer.suite.requests import BenchRequest, CompareRequest, FrontierRequest, RunRequest
from buzzer.suite.run import resolve

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
EXAMPLES = {test.name.rpartition(".")[2]: test for test in doctest.DocTestFinder().find(api)}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in an empty folder with a separate cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUZZER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BUZZER_DATA", raising=False)


def check_examples(*functions: str) -> None:
    runner = doctest.DocTestRunner()
    for function in functions:
        example = EXAMPLES[function]
        assert example.examples
        example.globs = vars(api) | {"folder": "records"}
        runner.run(example)
    assert runner.summarize().failed == 0


def test_the_examples_of_the_functions_hold() -> None:
    check_examples("run", "compare", "report")


@pytest.mark.slow
def test_the_example_of_bench_holds() -> None:
    check_examples("bench")


def test_the_examples_of_the_requests_hold() -> None:
    result = doctest.testmod(requests)
    assert result.attempted and not result.failed


@pytest.mark.slow
def test_the_code_of_the_page_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    plots = importlib.util.find_spec("matplotlib") is not None
    lines = [line for line in code.splitlines() if plots or ".plot." not in line]
    exec("\n".join(lines), names)  # noqa: S102
    assert sorted(names["seconds"].index) == ["pandas", "polars"]
    assert [r.outcome for r in names["records"]] == ["ok"] * 3


LIGHT = """
import sys, buzzer
dir(buzzer)
loaded = {"numpy", "rich", "pydantic", "torch", "pandas", "polars", "buzzer.suite"} & set(sys.modules)
assert not loaded, loaded
assert all(getattr(buzzer, name) for name in buzzer.__all__)
heavy = {"torch", "pandas", "polars", "onnxruntime", "xgboost"} & set(sys.modules)
assert not heavy, heavy
"""


def test_import_buzzer_is_light() -> None:
    """It imports nothing of the suite, and no public name imports a heavy library."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_public_raises_attribute_error() -> None:
    assert set(buzzer.__all__) <= set(dir(buzzer))
    with pytest.raises(AttributeError, match="no attribute 'runs'"):
        _ = buzzer.runs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: buzzer.run(RunRequest("bookin")), "unknown task"),
        (lambda: buzzer.run(RunRequest("booking", engines=["pandsa"])), "unknown engine"),
        (lambda: buzzer.run(RunRequest("booking", repeat=0)), "repeat is 0"),
        (lambda: buzzer.run(RunRequest("booking", seed=-1)), "seed is -1"),
        (lambda: buzzer.run(RunRequest("booking", params={"epochs": object()})), "params: "),
        (lambda: buzzer.run(RunRequest("booking", params={"epochs": "many"})), "is of type int"),
        (lambda: buzzer.bench(BenchRequest("minilm-l6", batches=[1, 0])), "not whole numbers above zero"),
        (lambda: buzzer.bench(BenchRequest("minilm-l6", packings="packd")), "unknown packing"),
        (lambda: buzzer.bench(BenchRequest("minilm-l6", loadgen_seeds=[1])), "not three whole numbers"),
        (lambda: buzzer.bench(BenchRequest("minilm-l6", inputs=1)), "inputs is 1"),
        (lambda: buzzer.compare(CompareRequest("booking", fail_if="wall:5%")), "must be given together"),
        (lambda: buzzer.compare(CompareRequest("booking", devices="gpu")), "unknown device"),
        (lambda: api.frontier(FrontierRequest("gbdt")), "needs a BERT"),
        (lambda: buzzer.report("nowhere"), "no such file or folder"),
    ],
)
def test_a_bad_request_raises_before_anything_runs(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
    assert not list(Path().iterdir())


def test_lists_and_strings_with_commas_mean_the_same() -> None:
    one = RunRequest(
        ["booking"], engines=["pandas", "polars"], budget=["quick", "1c4g5m"], params={"epochs": 2}
    )
    other = RunRequest("booking", engines="pandas, polars", budget="quick,1c4g5m", params={"epochs": "2"})
    assert resolve.run_plan(one) == resolve.run_plan(other)
    assert len(resolve.run_plan(one).timed) == 8


# ---- what a call shows --------------------------------------------------------------------------------------------


def test_without_a_terminal_only_warnings_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    with observing(None) as observer, caplog.at_level(logging.WARNING, "buzzer"):
        assert isinstance(observer, Quiet)
        observer.planned(1)
        observer.message("all is well")
        observer.message("[red]too little memory[/]", "warning")
    assert caplog.messages == ["[red]too little memory[/]"]


class Cell:
    """A stand-in for an output of a notebook."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def update(self, text: str) -> None:
        self.texts.append(text)


def test_a_notebook_shows_a_bar_and_clears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell()
    monkeypatch.setattr(display, "notebook_output", lambda: cell)
    monkeypatch.setattr(display, "html_of", lambda text: text)
    console = display.Console(force_jupyter=True)
    plan = resolve.run_plan(RunRequest("booking", engines="polars", budget="1c4g5m"))
    with Display(console) as shown:
        shown.planned(len(plan.timed))
        shown.phase(plan.timed[0], "predict", 60.0)
    assert "0 of 2 runs" in cell.texts[0] and "buzzer in 4:00" in cell.texts[0]
    assert cell.texts[-1] == ""
