"""The public functions: `import buzzer` is light, and the examples in docstrings and docs/api.md run."""

import ast
import doctest
import importlib.util
import logging
import math
import pickle
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, cast, get_type_hints

import numpy as np
import pandas as pd
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
    plots = importlib.util.find_spec("altair") is not None
    lines = [line for line in code.splitlines() if plots or ".plots." not in line]
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


def test_the_package_has_all_public_names() -> None:
    assert buzzer.__all__ == api.__all__


def test_type_checkers_do_not_see_getattr() -> None:
    """They would accept any name of the package: `buzzer.repport`."""
    statements = ast.parse(Path(buzzer.__file__).read_text()).body
    assert "__getattr__" not in [s.name for s in statements if isinstance(s, ast.FunctionDef)]
    (guarded,) = [s for s in statements if isinstance(s, ast.If) and ast.unparse(s.test) == "TYPE_CHECKING"]
    assert [s.name for s in guarded.orelse if isinstance(s, ast.FunctionDef)] == ["__getattr__"]
    imported = [alias.name for s in guarded.body if isinstance(s, ast.ImportFrom) for alias in s.names]
    assert sorted(imported) == sorted(buzzer.__all__)


@pytest.mark.parametrize("kind", [RunRequest, CompareRequest, BenchRequest, FrontierRequest])
def test_help_describes_every_field_of_a_request(kind: type) -> None:
    lines = re.findall(r"^    ([a-z_, ]+): ", kind.__doc__ or "", re.MULTILINE)
    described = {name for line in lines for name in line.split(", ")}
    common = {f.name for f in fields(RunRequest)} if kind is CompareRequest else set()
    names = {f.name for f in fields(kind)}
    assert described <= names and names - described <= common


def test_a_name_that_is_not_public_raises_attribute_error() -> None:
    assert set(buzzer.__all__) <= set(dir(buzzer))
    with pytest.raises(AttributeError, match="no attribute 'runs'"):
        _ = buzzer.runs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: buzzer.run(RunRequest("bookin")), "unknown task"),
        (lambda: buzzer.run(RunRequest("booking", engines=["pandsa"])), "unknown engine"),
        (lambda: buzzer.run(RunRequest("booking", rounds=0)), "rounds is 0"),
        (lambda: buzzer.run(RunRequest("booking", seed=-1)), "seed is -1"),
        (
            lambda: buzzer.run(RunRequest("booking", params={"epochs": object()})),
            "params: epochs is <object .*, not a value of YAML",
        ),
        (lambda: buzzer.run(RunRequest("booking", params={"epochs": "many"})), "is of type int"),
        (lambda: buzzer.bench(BenchRequest("minilm-l6", batches=[1, 0])), "not whole numbers above zero"),
        (lambda: buzzer.bench(BenchRequest("minilm-l6", packings="packd")), "unknown packing"),
        (lambda: buzzer.bench(BenchRequest("minilm-l6", loadgen_seeds=[1])), "not three whole numbers"),
        (lambda: buzzer.bench(BenchRequest("minilm-l6", inputs=1)), "inputs is 1"),
        (lambda: buzzer.compare(CompareRequest("booking", fail_if="wall:5%")), "must be given together"),
        (lambda: buzzer.compare(CompareRequest("booking", devices="gpu")), "unknown device"),
        (lambda: api.frontier(FrontierRequest("gbdt")), "needs a BERT"),
        (
            lambda: buzzer.bench(BenchRequest("minilm-l6", seconds=-1)),
            "seconds is -1; it must be from 0 to 1,000,000,000",
        ),
        (lambda: buzzer.bench(BenchRequest("minilm-l6", seconds=math.nan)), "seconds is nan"),
        (lambda: buzzer.bench(BenchRequest("minilm-l6", rounds=0)), "rounds is 0"),
        (lambda: buzzer.report("nowhere"), "no such file or folder"),
        (lambda: buzzer.report([], observer=cast(Any, 5)), "5 is not an observer"),
        (lambda: buzzer.report([], readme="none.md"), "none.md: No such file"),
    ],
)
def test_a_bad_request_raises_before_anything_runs(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
    assert not list(Path().iterdir())


def test_python_shows_the_hint_of_an_error() -> None:
    with pytest.raises(UsageError) as raised:
        buzzer.run(RunRequest("bookin"))
    error = pickle.loads(pickle.dumps(raised.value))
    assert traceback.format_exception(error)[-1].startswith("hint: did you mean booking?")


def wrong(**fields: Any) -> Any:
    """Values of other types than a request's fields have."""
    return fields


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: buzzer.run(cast(Any, "booking")), "'booking' is not a RunRequest"),
        (lambda: buzzer.bench(cast(Any, "minilm-l6")), "is not a BenchRequest"),
        (lambda: buzzer.compare(cast(Any, "booking")), "is not a CompareRequest"),
        (lambda: api.frontier(cast(Any, "bert")), "is not a FrontierRequest"),
        (lambda: buzzer.run(RunRequest("booking", **wrong(engines=3))), "not a name or a list of names"),
        (lambda: buzzer.run(RunRequest("booking", **wrong(scale="large"))), "scale is 'large', not a number"),
        (lambda: buzzer.run(RunRequest("booking", **wrong(device=None))), "device is None, not a text"),
        (lambda: buzzer.run(RunRequest("booking", **wrong(params=[1]))), "not a mapping"),
        (lambda: buzzer.run(RunRequest("booking"), out=cast(Any, None)), "None is not a path"),
        (lambda: buzzer.bench(BenchRequest("minilm-l6", **wrong(batches=1.5))), "batches is 1.5"),
        (lambda: buzzer.bench(BenchRequest("minilm-l6", **wrong(budget=None))), "budget is None"),
        (
            lambda: buzzer.compare(CompareRequest("booking", **wrong(scales="0.1,x"))),
            "not a number or a list",
        ),
        (lambda: buzzer.report(cast(Any, 3)), "3 is not a path"),
        (lambda: buzzer.report([], out=cast(Any, 3)), "3 is not a path"),
        (lambda: buzzer.load_records(cast(Any, 3)), "3 is not a path"),
        (lambda: buzzer.load_records(""), "a path is empty"),
        (lambda: buzzer.run(RunRequest("booking"), out=""), "a path is empty"),
        (lambda: buzzer.run(RunRequest("booking", data="")), "RunRequest: data is ''"),
        (lambda: buzzer.bench(BenchRequest("")), "BenchRequest: model is ''"),
        (lambda: buzzer.report([], csv="x\0y"), "'x.x00y' is not a path"),
        (lambda: buzzer.report(cast(Any, pd.DataFrame({"task": ["booking"]}))), "a DataFrame is not a path"),
        (
            lambda: buzzer.compare(CompareRequest("booking", **wrong(records=pd.DataFrame()))),
            "records is a DataFrame, not records, a path",
        ),
        (lambda: buzzer.compare(CompareRequest("booking", records=buzzer.Records())), "no timed runs"),
    ],
)
def test_a_value_of_a_wrong_type_raises_before_anything_runs(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        call()
    assert not list(Path().iterdir())


@pytest.mark.skipif(importlib.util.find_spec("altair") is None, reason="needs Altair")
@pytest.mark.parametrize("plot", ["speed_up", "frontier", "roofline"])
@pytest.mark.parametrize("value", ["results", [1], 5, None])
def test_a_plot_of_what_are_no_records_raises(plot: str, value: object) -> None:
    with pytest.raises(UsageError, match="is not a record"):
        getattr(buzzer.plots, plot)(value)


def test_every_field_of_a_request_is_checked_and_converted() -> None:
    for request in (RunRequest(), CompareRequest("a"), BenchRequest("a"), FrontierRequest()):
        assert requests.checked(type(request), request) == request
        assert {*get_type_hints(type(request)).values()} <= requests.TYPES.keys()
    converted = requests.checked(RunRequest, RunRequest("booking", **wrong(scale="0.5", seed=np.int64(3))))
    assert (converted.scale, converted.seed) == (0.5, 3)


def test_lists_and_texts_with_commas_mean_the_same() -> None:
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
