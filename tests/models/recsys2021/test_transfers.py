"""On a GPU, rows stay on the device from the frame to the models: only probabilities are copied to the host, and those of the first
stage back.

Tested without a GPU by stand-ins that have the interface of GPU arrays and count copies; on a GPU by CUDA's trace.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from buzzer.engine.frames.base import on_host
from buzzer.models.api.context import RunContext
from buzzer.models.recsys2021 import ensemble, trees
from buzzer.models.recsys2021.feature_sets import BASIC, TARGETS
from buzzer.models.recsys2021.open_network import OpenNetwork
from buzzer.models.recsys2021.params import Context
from buzzer.models.recsys2021.predicting import Predictor
from buzzer.models.recsys2021.task import TASK
from buzzer.suite import registry

ROWS = 50
ONE = ROWS * 4  # bytes of a float32 a row
WIDTH = len(BASIC.names())


@dataclass
class Bus:
    """Copied bytes, and the inputs of the models."""

    to_host: list[int] = field(default_factory=list)
    to_device: list[int] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)
    batches: list[Any] = field(default_factory=list)  # rows, and shapes of the networks' texts


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array like cupy's: only `get` copies it to the host, and NumPy's functions return such arrays."""

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

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **named: Any) -> "DeviceArray":
        assert method == "__call__"
        return self._device(function(*(self._own(x) for x in inputs), **named))

    def __array_function__(self, function: Any, kinds: Any, inputs: Any, named: Any) -> "DeviceArray":
        return self._device(function(*(self._own(x) for x in inputs), **named))

    @staticmethod
    def _own(x: Any) -> Any:
        if isinstance(x, np.ndarray) and x.ndim:
            raise TypeError("an array of the host among those of the device")  # as cupy does
        return x._values if isinstance(x, DeviceArray) else x

    def _device(self, values: Any) -> "DeviceArray":
        return DeviceArray(values, self._bus)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, part: Any) -> "DeviceArray":
        return self._device(self._values[self._own(part)])

    def round(self, decimals: int) -> "DeviceArray":
        return self._device(self._values.round(decimals))

    def sum(self, axis: int, dtype: Any) -> "DeviceArray":
        return self._device(self._values.sum(axis=axis, dtype=dtype))

    def astype(self, dtype: Any) -> "DeviceArray":
        return self._device(self._values.astype(dtype))

    def copy(self) -> "DeviceArray":
        return self._device(self._values.copy())


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
    """Accepts and returns device arrays only."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def set_param(self, settings: dict[str, Any]) -> None:
        assert settings["device"] == "cuda"

    def inplace_predict(self, x: Any, base_margin: Any) -> DeviceArray:
        assert isinstance(x, DeviceArray)
        assert base_margin is None or isinstance(base_margin, DeviceArray)
        self._bus.seen.append(x)
        return DeviceArray(np.full(len(x), 0.25, dtype="float32"), self._bus)


class Network:
    """A session that accepts device arrays only; its outputs are on the host, as those of all sessions."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def run(self, batch: dict[str, Any]) -> dict[str, Any]:
        assert all(isinstance(array, DeviceArray) for array in batch.values())
        rows = len(batch["text"])
        self._bus.batches.append((rows, batch["tokens"].shape))
        return {"probability": DeviceArray(np.full((rows, len(TARGETS)), 0.5, "float32"), self._bus).get()}


class Users:
    """A table of users on the device."""

    def __init__(self, bus: Bus) -> None:
        self._table = DeviceArray(np.zeros((9, 3), "float32"), bus)

    def of_piece(self, codes: Any) -> "Users":
        self._codes = codes
        return self

    def of(self, rows: Any) -> DeviceArray:
        return self._table[self._codes[rows]]


class Frames:
    """An engine that computes nothing and returns matrices on the device."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def lookups(self, t: Any, wanted: Any) -> Any:
        return t

    with_columns = drop = lambda self, t, *names, **exprs: t

    def keep(self, t: Any) -> Any:
        return t

    def matrix(self, t: Any, columns: Any) -> DeviceArray:
        return DeviceArray(np.ones((ROWS, len(columns)), dtype="float32"), self._bus)

    def codes(self, t: Any, columns: Any) -> DeviceArray:
        return DeviceArray(np.ones((ROWS, len(columns)), dtype="int64"), self._bus)

    def token_matrix(self, t: Any, column: str, separator: str, length: int) -> DeviceArray:
        there = np.arange(length) < np.arange(ROWS)[::-1, None]  # as many tokens as rows come after
        return DeviceArray(there.astype("int32"), self._bus)

    def to_arrow(self, t: Any, columns: Any) -> Any:
        return "ids"


@pytest.fixture
def asked(tmp_path: Path) -> Context:
    params = registry.task("recsys2021").params | {"networks": []}
    folders = (tmp_path, tmp_path, tmp_path)
    context = RunContext("recsys2021", "cudf", "torch_eager", "fp32", "cuda", *folders, 1.0, 0, 1, params)
    return TASK.typed(context)


def both_stages(context: Context, x: Any, beside: Any) -> dict[str, Any]:
    """The part of `Predictor.predict` that follows the features."""
    models = ensemble.select_models(context.params)
    first, second = ensemble.FirstStage(context, models), ensemble.SecondStage(context, models)
    by_model = first.predict_trees(ensemble.Inputs(x, None, None, None))
    return by_model | second.predict(x, ensemble.log_odds_of(x, by_model, models), {"loo": beside})


def test_only_probabilities_and_ids_are_copied_to_the_host(
    asked: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece through both stages with trees and a network: features, texts and users stay on the device."""
    bus, size = Bus(), 20
    monkeypatch.setitem(sys.modules, "cupy", cupy(bus))
    monkeypatch.setattr("buzzer.engine.infer.trees.load", lambda model: Booster(bus))
    session, table = cast(Any, Network(bus)), cast(Any, Users(bus))
    network = OpenNetwork(session, ("features", "tokens", "text", "users"), 48, table, (0, 1))
    monkeypatch.setattr(
        "buzzer.models.recsys2021.open_network.open_networks",
        lambda names, context: {name: [network] for name in names},
    )
    params = asked.params.model_copy(update={"networks": ["pooled"], "predict_batch": size})
    context = replace(asked, params=params)
    predictor: Any = object.__new__(Predictor)
    predictor.context, predictor.e, predictor.models = context, Frames(bus), ensemble.select_models(params)
    predictor.columns, predictor.weights = BASIC, np.full((3, len(TARGETS)), 0.5, dtype=np.float32)
    predictor.first = ensemble.FirstStage(context, predictor.models)
    predictor.second, predictor.lookups = ensemble.SecondStage(context, predictor.models), []
    predicted = ended(predictor.predict(SimpleNamespace(columns=lambda names: names)))
    targets, order, longest = len(TARGETS), 8 * ROWS, ROWS
    assert bus.to_host == [
        *[ONE] * targets,  # trees
        order,
        longest,  # of the batches' texts, a byte a row
        *[targets * 4 * rows for rows in (size, size, ROWS - 2 * size)],  # the network
        *[targets * ONE] * 2,  # the first stage's mean, and its weighted mean
        *[ONE] * targets,  # the second stage's trees
    ]
    # The first stage's probabilities, once a model, and the weights of the weighted mean.
    assert bus.to_device == [targets * ONE] * 2 + [predictor.weights.nbytes]
    assert all(given is bus.seen[0] for given in bus.seen[:targets])  # the very array, not a copy
    width = WIDTH + 2 * targets + len(BASIC.week_names("loo"))
    assert [given.shape for given in bus.seen[targets:]] == [(ROWS, width)] * targets
    last = ROWS - 2 * size  # with two rows of the longest text
    assert bus.batches == [(size, (size, 19)), (size, (size, 39)), (last, (last - 1, 48))]
    assert all(isinstance(array, np.ndarray) for array in predicted.by_model.values())
    assert (predicted.ids, predicted.blend.shape) == ("ids", (ROWS, targets))


def ended(steps: Any) -> Any:
    """The return value of a generator."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_implicit_copies_are_refused_and_others_counted() -> None:
    bus = Bus()
    array = DeviceArray(np.ones((3, 2), dtype="float32"), bus)
    with pytest.raises(TypeError, match="implicit copy"):
        np.asarray(array)
    with pytest.raises(TypeError, match="of the host"):
        array + np.ones(2)
    assert on_host(array).tolist() == [[1, 1]] * 3
    assert bus.to_host == [24]


@pytest.mark.gpu
def test_features_are_never_copied_on_cuda(asked: Context, tmp_path: Path) -> None:
    """By CUDA's trace of real models: no copy between host and device is as large as a tenth of the features."""
    torch = pytest.importorskip("torch")
    real = pytest.importorskip("cupy")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    params = asked.params.model_copy(update={"rounds_1": 2, "rounds_2": 2})
    rows, own = 20_000, replace(asked, params=params)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, WIDTH)).astype("float32")
    y = (rng.random((rows, len(TARGETS))) < 0.2).astype("float32")
    beside = rng.normal(size=(rows, len(BASIC.week_names("loo")))).astype("float32")
    wide = np.concatenate([x, y, beside], axis=1)
    list(trees.fit(own, "kfold", x, y))
    list(trees.fit(own, "second_loo", wide, y, np.zeros_like(y)))
    on_device = real.asarray(x), real.asarray(beside)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        both_stages(own, *on_device)
    trace.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    copies = [e["args"]["bytes"] for e in events if e.get("cat") == "gpu_memcpy" and "DtoD" not in e["name"]]
    assert copies
    assert max(copies) < x.nbytes / 10
