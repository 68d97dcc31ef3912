from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from buzzer.models.api.context import Data
from buzzer.suite.budget import resolve
from buzzer.suite.records.schema import Record
from buzzer.suite.registry import TaskConfig, Variant, params_hash
from buzzer.suite.run import runner
from buzzer.suite.run.plan import Run, TaskSelection, fit_run, predict_runs

HERE = Path(__file__).resolve().parent


def fake_config(do: str = "work") -> TaskConfig:
    return TaskConfig(
        name="fake",
        summary="a task for tests",
        entry="fake_task:TASK",
        dataset="fake",
        engines=["none"],
        backends=["torch_eager", "onnxruntime"],
        reference=Variant(engine="none", backend="torch_eager"),
        metric="accuracy",
        tolerance=0.01,
        resumable=do == "pieces",
        params={"do": do},
    )


def fake_selection(do: str = "work", budget: str = "1c2g30s", **changes: Any) -> TaskSelection:
    fields: dict[str, Any] = {
        "task": fake_config(do),
        "engines": None,
        "backends": ["torch_eager", "onnxruntime"],
        "precisions": ["fp32"],
        "device": None,
        "budgets": [resolve(budget)],
        "scale": 1.0,
        "seed": 0,
        "repeat": 1,
    }
    return TaskSelection(**(fields | changes))


@pytest.fixture(params=["cgroups", "polled"])
def enforcement(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both kinds of enforcement; cgroups only if the machine supports them."""
    from buzzer.suite.run import limits

    limits.cgroups_work.cache_clear()
    if request.param == "polled":
        monkeypatch.setenv("BUZZER_ENFORCEMENT", "polled")
    elif not limits.cgroups_work():
        pytest.skip("no cgroups here")
    limits.cgroups_work.cache_clear()
    yield str(request.param)
    limits.cgroups_work.cache_clear()


@pytest.fixture
def fake_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process and its children import fake_task."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture
def data(tmp_path: Path) -> Data:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "input.csv").write_text("1\n")
    return Data(folder, "f" * 64, "generated", {"rows": 10}, 1.0)


@pytest.fixture
def choose() -> Callable[..., TaskSelection]:
    """Makes a selection of the fake task: what it does, its budget, and any other field."""
    return fake_selection


@pytest.fixture
def predict(tmp_path: Path, fake_path: None, data: Data) -> Callable[..., Record]:
    """Runs the fake task's fit, then one timed run of a variant. Returns its record."""

    def go(do: str, budget: str = "1c2g30s", variant: int = 0, others: tuple[Record, ...] = ()) -> Record:
        choice = fake_selection(do, budget)
        run: Run = predict_runs(choice)[variant]
        runner.fit(fit_run(choice), data, tmp_path / "cache", lambda phase, elapsed, part: None)
        return runner.predict(
            run, data, tmp_path / "cache", tmp_path, others, lambda phase, elapsed, part: None
        )

    return go


RECORD: dict[str, Any] = {
    "run_id": "a" * 32,
    "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "task": "fake",
    "job": "predict",
    "engine": "none",
    "backend": "torch_eager",
    "precision": "fp32",
    "device": "cpu",
    "scale": 1.0,
    "seed": 0,
    "budget": {"name": "1c2g30s", "cores": 1, "memory_bytes": 2 * 10**9, "time_s": 30.0},
    "enforcement": "cgroups",
    "outcome": "ok",
    "scores": {"accuracy": 0.9},
    "metric": "accuracy",
    "gate": {"status": "reference"},
    "rows": 10,
    "wall_s": 2.0,
    "cpu_s": 1.5,
    "peak_memory_bytes": 10**8,
    "overhead_s": 0.1,
    "phases": [
        {"name": "start", "wall_s": 0.5, "cpu_s": 0.5, "peak_memory_bytes": 10**7},
        {"name": "predict", "wall_s": 1.5, "cpu_s": 1.0, "peak_memory_bytes": 10**8},
    ],
    "samples": {"predict": [0.5, 0.5, 0.5]},
    "machine": {
        "cpu": "a processor",
        "simd": "AVX2",
        "cores": 2,
        "memory_bytes": 2**34,
        "system": "Linux",
        "arch": "x86_64",
        "gpus": [],
    },
    "load_before": 0.1,
    "versions": {"python": "3.11"},
    "git_commit": None,
    "data_source": "generated",
    "data_fingerprint": "f" * 64,
    "config": {"do": "work"},
    "config_hash": params_hash({"do": "work"}),
    "command": ["buzzer", "run"],
}


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """A valid record with any field changed."""
    return lambda **changes: Record.model_validate(RECORD | changes)
