"""The outcomes of exceptions in the worker, and the proof that a run used the GPU."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buzzer.errors import DataError, UnsupportedError
from buzzer.models.api.context import RunContext
from buzzer.suite.records import gate
from buzzer.suite.records.schema import Record
from buzzer.suite.run import worker
from buzzer.suite.run.events import Done
from buzzer.suite.run.plan import TaskSelection
from buzzer.suite.run.spec import WorkerSpec

Make = Callable[..., Record]
Choose = Callable[..., TaskSelection]
OPENED = 500 << 20


def grouped(*errors: Exception) -> Exception:
    return ExceptionGroup("unhandled errors in a TaskGroup", [ExceptionGroup("actors", list(errors))])


@pytest.mark.parametrize(
    ("error", "outcome", "message"),
    [
        (RuntimeError("std::bad_alloc: out_of_memory: CUDA error"), "device-oom", "out_of_memory"),
        (RuntimeError("CUDA driver version is insufficient"), "unsupported", "insufficient"),
        (NotImplementedError("Query execution with GPU not possible"), "unsupported", "not possible"),
        (UnsupportedError("no CUDA device", "use another"), "unsupported", "no CUDA device"),
        (DataError("a.csv:12: not a date"), "error", "a.csv:12"),
        (MemoryError(), "host-oom", "MemoryError"),
        (OSError(28, "No space left on device"), "error", "the disk is full"),
        (ValueError("something else"), "error", "ValueError: something else"),
        (
            ModuleNotFoundError("No module named 'polars'", name="polars"),
            "unsupported",
            "needs the package polars",
        ),
        (ModuleNotFoundError("No module named 'mine'", name="mine"), "error", "No module named 'mine'"),
    ],
)
def test_an_exception_in_a_group_has_the_same_outcome_as_alone(
    error: Exception, outcome: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, inside = worker.failure(error), worker.failure(grouped(error))
    assert inside == alone
    assert (inside.outcome, message in inside.message) == (outcome, True)
    if outcome in ("device-oom", "error") and not isinstance(error, DataError | OSError):
        assert str(error) in capsys.readouterr().err


def test_the_expected_exception_of_a_group_counts() -> None:
    failed = worker.failure(grouped(ValueError("a consequence"), DataError("a.csv:12: not a date")))
    assert failed.message == "a.csv:12: not a date"


class Nvml:
    """A stand-in for NVML with one GPU."""

    class NVMLError(Exception):
        pass

    used = 10**9

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return type("Memory", (), {"used": self.used})


def test_opening_the_device_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    library, limits = Nvml(), list[int]()

    def synchronize() -> None:
        library.used += OPENED

    monkeypatch.setattr(worker, "nvml", lambda: library)
    monkeypatch.setattr(worker, "limit_memory", limits.append)
    monkeypatch.setattr(worker, "own_memory", lambda: {"torch_peak": 0, "process": None})
    context = RunContext("t", "cudf", "xgboost", "fp32", "cuda", Path(), Path(), Path(), 1.0, 0, 1)
    device = worker.Device(context, synchronize)
    library.used += 10 << 20  # by the task
    counters = {"torch_peak": 0, "process": None}
    assert device.memory() == {"opened": OPENED, "held": OPENED + (10 << 20), **counters}
    assert worker.Device(replace(context, gpu_memory_bytes=7), lambda: None).opened == 0
    assert limits == [7]
    monkeypatch.setattr(worker, "nvml", lambda: None)
    assert worker.Device(context, synchronize).memory() == {"opened": None, "held": None, **counters}


def test_the_clock_of_a_gpu_run_waits_for_the_device(
    tmp_path: Path, fake_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits before each reading: when a phase begins, at each lap, and at the end."""
    import torch

    waits = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(None))
    (tmp_path / "model").write_text("fitted")
    folders = {"data": tmp_path, "work": tmp_path, "out": tmp_path}
    context = RunContext("fake", "none", "torch_eager", "fp32", "cuda", **folders, scale=1.0, seed=0, threads=1, params={"do": "work"}, workers=1)  # fmt: skip
    spec = WorkerSpec(context, "predict", "fake_task:TASK", tmp_path / "events")
    assert isinstance(worker.attempt(spec, io.StringIO()), Done)
    assert len(waits) == len(["load", "predict", "predict", "predict", "write", "score", "the end"])


PROOFS = {
    "torch allocated": ({"torch_peak": 2 << 20, "opened": OPENED}, 0.0, OPENED, True),
    "memory beyond the context": ({"torch_peak": 0, "opened": OPENED}, 0.0, OPENED + (2 << 20), True),
    "held at the end of a run too short for samples": (
        {"torch_peak": 0, "opened": OPENED, "held": OPENED + (4 << 20)},
        0.0,
        0,
        True,
    ),
    "only opened, and other processes at work": (
        {"torch_peak": 0, "opened": OPENED, "held": OPENED},
        0.5,
        OPENED,
        False,
    ),
    "at work with memory": ({"torch_peak": 0, "opened": None}, 0.5, 10**9, True),
    "torch allocated, no NVML": ({"torch_peak": 2 << 20, "opened": None}, None, None, True),
    "opened and never used": ({"torch_peak": 0, "opened": OPENED}, 0.0, OPENED, False),
    "opened, a little more by others": ({"torch_peak": 0, "opened": OPENED}, 0.0, OPENED + (1 << 20), False),
    "at work without memory": ({"torch_peak": 0, "opened": 0}, 0.5, 0, False),
    "no measurement": ({}, None, None, False),
    "memory, perhaps of another process": ({}, 0.0, 10**9, False),
    "values of wrong types": ({"torch_peak": True, "opened": "all"}, 0.0, 10**9, False),
}


@pytest.mark.parametrize("name", PROOFS)
def test_proof_of_gpu_use(make_record: Make, choose: Choose, name: str) -> None:
    memory, busy, peak, proved = PROOFS[name]
    r = make_record(device="cuda", gpu_busy_s=busy, gpu_peak_memory_bytes=peak, details={"gpu_bytes": memory})
    judged = gate.judge(r, choose().task, [])
    assert (judged.outcome == "ok") == proved, judged.message
    if not proved:
        assert (judged.outcome, judged.gate.status) == ("wrong", "failed")
        assert "GPU" in judged.message


def test_details_that_are_not_a_mapping_prove_nothing(make_record: Make) -> None:
    r = make_record(device="cuda", gpu_busy_s=0.0, gpu_peak_memory_bytes=0, details={"gpu_bytes": [1]})
    assert "no sign of GPU use" in gate.no_gpu_proof(r)
