"""A stored network predicts the same on every backend, from its graph or as a module."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from buzzer.engine import infer
from buzzer.errors import UnsupportedError, UsageError

ROWS = {"x": np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)}
EXAMPLE = {"x": ROWS["x"][:2]}
ON_CPU = [
    name
    for name, backend in infer.BACKENDS.items()
    if infer.runs(name, infer.NETWORKS) and "cpu" in backend.devices
]


class Loader:
    """Makes the module, and counts how often."""

    def __init__(self, module: Any) -> None:
        self.module, self.calls = module, 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.module


@pytest.fixture
def module() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()


def predicted(stored: infer.Stored, backend: str, precision: str = "fp32") -> Any:
    try:
        session = infer.prepare(
            stored, backend=backend, example=EXAMPLE, outputs=("y",), precision=precision, threads=1
        )
    except UnsupportedError as error:
        pytest.skip(error.message)
    with session:
        return session.run(ROWS)["y"]


@pytest.mark.parametrize("backend", [name for name in ON_CPU if name != "torch_compile"])
def test_backends_of_graphs_do_not_load_the_module(backend: str, module: Any, tmp_path: Path) -> None:
    infer.store(module, tmp_path / "net.onnx", EXAMPLE, ("y",))
    load = Loader(module)
    with torch.inference_mode():
        want = module(torch.from_numpy(ROWS["x"])).numpy()
    got = predicted(infer.Stored(tmp_path / "net.onnx", load), backend)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert load.calls == (not infer.runs(backend, infer.ONNX))


def test_another_precision_is_made_of_the_module(module: Any, tmp_path: Path) -> None:
    infer.store(module, tmp_path / "net.onnx", EXAMPLE, ("y",))
    load = Loader(module)
    predicted(infer.Stored(tmp_path / "net.onnx", load), "onnxruntime", "int8-dynamic")
    assert load.calls == 1


def test_a_float_network_is_not_run_in_int8(module: Any, tmp_path: Path) -> None:
    """From the module, as without a graph."""
    with pytest.raises(UsageError, match="int8 needs a quantised model"):
        predicted(infer.Stored(tmp_path / "net.onnx", Loader(module)), "onnxruntime", "int8")


def test_only_open_axes_may_change(module: Any, tmp_path: Path) -> None:
    infer.store(module, tmp_path / "net.onnx", EXAMPLE, ("y",), {"x": {}})
    stored = infer.Stored(tmp_path / "net.onnx", Loader(module))
    session = infer.prepare(stored, backend="onnxruntime", example=EXAMPLE, outputs=("y",), dynamic={"x": {}})
    with session, pytest.raises(UsageError, match="axis 0 has size 5"):
        session.run(ROWS)
