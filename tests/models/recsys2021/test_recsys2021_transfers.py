"""From the frame to the trees, features stay on the device: only predictions and log odds cross to the host and back.

Without a GPU by stand-ins that offer what GPU arrays offer and count what crosses; on a GPU by CUDA's own trace.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from buzzer.engine.frames.base import on_host
from buzzer.models.job import Job
from buzzer.models.recsys2021 import features, stages, trees, week
from buzzer.models.recsys2021.features import TARGETS
from buzzer.suite import registry

ROWS = 50
ONE = ROWS * 4  # bytes of a float32 a row
WIDTH = len(features.names())


@dataclass
class Bus:
    """What crossed, in bytes, and what the trees were given."""

    to_host: list[int] = field(default_factory=list)
    to_device: list[int] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)


class DeviceArray:
    """Values that the host can have by `get` alone."""

    def __init__(self, values: Any, bus: Bus) -> None:
        self._values, self._bus = values, bus
        self.shape, self.dtype, self.ndim, self.nbytes = (
            values.shape,
            values.dtype,
            values.ndim,
            values.nbytes,
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (1 << 40, False), "version": 3}

    def get(self) -> Any:
        self._bus.to_host.append(self.nbytes)
        return self._values.copy()

    def __array__(self, *arguments: Any, **named: Any) -> Any:
        raise TypeError("implicit copy to the host")  # as cupy does

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, part: Any) -> "DeviceArray":
        return DeviceArray(self._values[part], self._bus)

    def round(self, decimals: int) -> "DeviceArray":
        return DeviceArray(self._values.round(decimals), self._bus)


def cupy(bus: Bus) -> Any:
    """The part of cupy that is used."""

    def asarray(array: Any) -> DeviceArray:
        if isinstance(array, DeviceArray):
            return array
        bus.to_device.append(array.nbytes)
        return DeviceArray(array, bus)

    def concatenate(parts: list[DeviceArray], axis: int) -> DeviceArray:
        return DeviceArray(np.concatenate([part._values for part in parts], axis=axis), bus)

    return SimpleNamespace(asarray=asarray, concatenate=concatenate)


class Booster:
    """Takes device arrays only, and answers with one."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def set_param(self, settings: dict[str, Any]) -> None:
        assert settings["device"] == "cuda"

    def inplace_predict(self, x: Any, base_margin: Any) -> DeviceArray:
        assert isinstance(x, DeviceArray)
        assert base_margin is None or isinstance(base_margin, DeviceArray)
        self._bus.seen.append(x)
        return DeviceArray(np.full(len(x), 0.25, dtype="float32"), self._bus)


@pytest.fixture
def asked(tmp_path: Path) -> Job:
    params = registry.task("recsys2021").params | {"networks": []}
    folders = (tmp_path, tmp_path, tmp_path)
    return Job("recsys2021", "cudf", "torch_eager", "fp32", "cuda", *folders, 1.0, 0, 1, params)


def both_stages(job: Job, x: Any, beside: Any) -> dict[str, Any]:
    """What `Predictor.predict` does once the features are a matrix."""
    models = stages.chosen(job.params)
    first, second = stages.FirstStage(job, models), stages.SecondStage(job, models)
    found = first.predict_trees(stages.Inputs(x, None, None, None))
    odds = [trees.log_odds(found[name]) for name in models.first]
    return found | second.predict(x, odds, {"loo": beside})


def test_the_features_never_cross(asked: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus()
    monkeypatch.setitem(sys.modules, "cupy", cupy(bus))
    monkeypatch.setattr("buzzer.engine.infer.xgboost.load", lambda model: Booster(bus))
    x = DeviceArray(np.ones((ROWS, WIDTH), dtype="float32"), bus)
    beside = DeviceArray(np.ones((ROWS, len(week.names("loo"))), dtype="float32"), bus)
    found = both_stages(asked, x, beside)
    targets = len(TARGETS)
    assert bus.to_host == [ONE] * (2 * targets)  # each model's predictions
    assert bus.to_device == [
        targets * ONE,
        *[ONE] * targets,
    ]  # the first stage's log odds as columns, and as margins
    assert all(given is x for given in bus.seen[:targets])  # the very array, not a copy
    assert [given.shape for given in bus.seen[targets:]] == [
        (ROWS, WIDTH + targets + beside.shape[1])
    ] * targets
    assert all(isinstance(array, np.ndarray) for array in found.values())


def test_an_unnoticed_copy_would_be_counted() -> None:
    bus = Bus()
    array = DeviceArray(np.ones((3, 2), dtype="float32"), bus)
    with pytest.raises(TypeError, match="implicit copy"):
        np.asarray(array)
    assert on_host(array).tolist() == [[1, 1]] * 3
    assert bus.to_host == [24]


@pytest.mark.gpu
def test_the_features_never_cross_cuda(asked: Job, tmp_path: Path) -> None:
    """By CUDA's trace of real models: no copy between host and device is as large as a tenth of the features."""
    torch = pytest.importorskip("torch")
    real = pytest.importorskip("cupy")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rows, own = 20_000, replace(asked, params=asked.params | {"rounds_1": 2, "rounds_2": 2})
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, WIDTH)).astype("float32")
    y = (rng.random((rows, len(TARGETS))) < 0.2).astype("float32")
    beside = rng.normal(size=(rows, len(week.names("loo")))).astype("float32")
    wide = np.concatenate([x, y, beside], axis=1)
    list(trees.fit(own, "kfold", x, y, 2, 3))
    list(trees.fit(own, "week-loo", wide, y, 2, 3, np.zeros_like(y)))
    on_device = real.asarray(x), real.asarray(beside)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        both_stages(own, *on_device)
    trace.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    copies = [e["args"]["bytes"] for e in events if e.get("cat") == "gpu_memcpy" and "DtoD" not in e["name"]]
    assert copies
    assert max(copies) < x.nbytes / 10
