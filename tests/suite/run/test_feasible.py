"""Engine, backend, device and precision of a run are checked before anything is trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buzzer.engine import device
from buzzer.errors import UnsupportedError
from buzzer.models.api.context import Data
from buzzer.suite.requests import RunRequest
from buzzer.suite.run import feasible, resolve, task_runs
from buzzer.suite.run.plan import Run

SMALL = {"budget": "1c1g1m", "on_unmet_budget": "warn", "scale": 0.001}


def runs_of(task: str, **request: Any) -> list[Run]:
    """The timed runs of a request."""
    return resolve.run_plan(RunRequest(task, **(SMALL | request))).timed


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a CUDA device."""
    monkeypatch.setattr(device, "cuda_problem", lambda *_: "no driver")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("task", "request_", "problem"),
    [
        ("booking", {"engines": "pandas", "backends": "torch_eager"}, ""),
        ("recsys2021", {"engines": "polars", "backends": "onnxruntime+forest"}, ""),
        ("booking", {"engines": "polars", "backends": "torch_eager", "precisions": "bf16"}, ""),
        ("bert-intent-precision", {"backends": "onnxruntime", "precisions": "int8"}, ""),
        ("bert-intent-precision", {"backends": "torch_eager", "precisions": "sparse-int8"}, ""),
        ("booking", {"engines": "pandas", "device": "cuda"}, "no CUDA device here: no driver"),
        ("bert-intent", {"device": "cuda"}, "no CUDA device here: no driver"),
        (
            "bert-intent-precision",
            {"backends": "openvino", "device": "cuda"},
            "openvino does not run on cuda",
        ),
        (
            "recsys2021",
            {"engines": "polars", "backends": "forest", "device": "cuda"},
            "forest does not run on",
        ),
        ("booking", {"backends": "onnxruntime", "precisions": "bf16"}, "onnxruntime has no precision bf16"),
        ("booking", {"backends": "torch_eager", "precisions": "int8"}, "booking has no model in int8"),
        (
            "recsys2021",
            {"backends": "onnxruntime+forest", "precisions": "bf16"},
            "onnxruntime has no precision",
        ),
    ],
)
def test_what_cannot_run_here_is_known_before(task: str, request_: dict[str, Any], problem: str) -> None:
    found = {error.message if (error := feasible.problem(run)) else "" for run in runs_of(task, **request_)}
    assert len(found) == 1
    assert problem in found.pop() if problem else found == {""}


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = runs_of("booking", engines="pandas", backends="onnxruntime")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    error = feasible.problem(run)
    assert isinstance(error, UnsupportedError)
    assert (error.message, error.hint) == (
        "backend onnxruntime needs the package onnxruntime",
        "pip install 'buzzer[run]'",
    )


def test_the_gpus_of_a_cluster_may_be_elsewhere(monkeypatch: pytest.MonkeyPatch, no_gpu: None) -> None:
    (run,) = runs_of("recsys2021", engines="polars-gpu", backends="torch_eager")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert feasible.problem(run) is not None
    assert feasible.problem(replace(run, scheduler="tcp://host:8786")) is None


def test_the_scale_of_a_run_is_that_of_its_data(tmp_path: Path) -> None:
    """Of given files it is known once they are checked; estimates and the lines of progress use it."""
    data = Data(tmp_path, "", "official", {}, 0.9)
    plan = resolve.run_plan(RunRequest("booking", engines="pandas", backends="torch_eager", **SMALL))
    assert {run.scale for _, run in plan.runs} != {0.9}
    assert [step.run.scale for step in task_runs.steps(plan, [data], tmp_path)] == [0.9, 0.9]


def test_a_fit_without_a_run_is_left_out(tmp_path: Path, no_gpu: None) -> None:
    data = Data(tmp_path, "", "generated", {}, 0.001)
    for where, jobs in (("cuda", ["predict"]), ("cpu", ["fit", "predict"])):
        request = RunRequest("booking", engines="pandas", backends="torch_eager", device=where, **SMALL)
        steps = task_runs.steps(resolve.run_plan(request), [data], tmp_path)
        assert [step.run.job for step in steps] == jobs
        assert (steps[-1].problem is None) == (where == "cpu")
