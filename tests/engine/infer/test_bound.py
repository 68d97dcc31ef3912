"""ONNX Runtime on device memory: its CPU provider in place of that of a GPU, on a stand-in for the CUDA API; and on a GPU."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from buzzer.engine import infer
from buzzer.engine.infer import Array, Session
from buzzer.engine.infer.backends import onnxruntime_cuda
from buzzer.engine.infer.onnx import bound
from buzzer.engine.infer.session import Staging
from buzzer.errors import DataError, UnsupportedError
from tests.engine.infer.cuda_stand_in import stand_in
from tests.engine.infer.test_cuda_graphs import Net, batch, expected

CPU = bound.Provider("CPUExecutionProvider", {}, {})


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "cuda":
        if (
            "CUDAExecutionProvider" not in bound.ort.get_available_providers()
            or not torch.cuda.is_available()
        ):
            pytest.skip("no ONNX Runtime for a CUDA device")
        yield "cuda"
        return
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    monkeypatch.setattr(bound, "PLACE", "cpu")
    monkeypatch.setattr(onnxruntime_cuda, "PROVIDER", CPU)
    without_library(monkeypatch, "onnxruntime_cuda")
    with stand_in(monkeypatch):
        yield "stand-in"


def without_library(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """A backend that needs no library of ONNX Runtime's GPU distribution."""
    monkeypatch.setitem(infer.BACKENDS, backend, replace(infer.BACKENDS[backend], library=""))


def prepared(model: Any, precision: str = "fp32", open_axes: bool = False) -> Session:
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} if open_axes else {} for name in ("ids", "x")}
    return infer.prepare(
        model,
        backend="onnxruntime_cuda",
        example=batch(0),
        outputs=("y", "h"),
        dynamic=axes,
        precision=precision,
        device="cuda",
    )


def close(outputs: dict[str, Array], net: Net, given: dict[str, Array], tolerance: float) -> None:
    for name, want in zip(("y", "h"), expected(net, given), strict=True):
        assert outputs[name].dtype == np.float32
        np.testing.assert_allclose(outputs[name], want, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2)])
@pytest.mark.usefixtures("device")
def test_each_run_computes_its_own_input_on_static_buffers(precision: str, tolerance: float) -> None:
    net = Net().eval()
    with prepared(net, precision) as session:
        for seed in (1, 2, 3, 1):
            session.poison()
            outputs = session.run(given := batch(seed))
            close(outputs, net, given, tolerance)
        description = session.describe()
    assert description.graph is True
    assert description.notes == ()
    assert description.backend == "onnxruntime_cuda"


@pytest.mark.usefixtures("device")
def test_outputs_are_written_by_the_replay_and_belong_to_the_caller() -> None:
    net = Net().eval()
    with prepared(net) as session:
        assert isinstance(session, Staging)
        staged = session.stage(batch(1))
        session.replay(staged)
        first = session.fetch(staged)["y"]
        kept = first.copy()
        session.poison()
        assert np.isnan(session.fetch(staged)["y"]).all()  # the buffer is reused
        np.testing.assert_array_equal(first, kept)
        session.replay(staged)
        np.testing.assert_array_equal(session.fetch(staged)["y"], kept)


@pytest.mark.usefixtures("device")
def test_with_open_axes_there_is_no_graph() -> None:
    net = Net().eval()
    with prepared(net, open_axes=True) as session:
        for rows in (1, 2):
            given = {name: array[:rows] for name, array in batch(5).items()}
            close(session.run(given), net, given, 1e-5)
        description = session.describe()
    assert description.graph is False
    assert "axes are not fixed" in description.notes[0]


@pytest.mark.usefixtures("device")
def test_a_graph_that_cannot_be_captured_runs_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    net, run = Net().eval(), bound.BoundSession.replay

    def refuses(self: bound.BoundSession, staged: bound.Bound) -> None:
        if staged.outputs is not None:
            raise RuntimeError("[ONNXRuntimeError] : 11 : EP_FAIL : nodes on the CPU\nmore of it")
        run(self, staged)

    monkeypatch.setattr(bound.BoundSession, "replay", refuses)
    with prepared(net) as session:
        close(session.run(given := batch(3)), net, given, 1e-5)
        description = session.describe()
    assert description.graph is False
    assert (
        "could not be captured ([ONNXRuntimeError] : 11 : EP_FAIL : nodes on the CPU)" in description.notes[0]
    )


@pytest.mark.usefixtures("device")
def test_a_file_that_is_no_graph_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(DataError):
        prepared(tmp_path / "x.onnx")


@pytest.mark.parametrize("backend", ["onnxruntime_cuda", "onnxruntime_tensorrt"])
def test_an_installation_without_the_provider_is_unsupported(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    without_library(monkeypatch, backend)
    common: dict[str, Any] = {"example": batch(0), "outputs": ("y", "h"), "device": "cuda"}
    with stand_in(monkeypatch), pytest.raises(UnsupportedError, match=r"has no \w+ExecutionProvider"):
        infer.prepare(Net().eval(), backend=backend, **common)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize("is_there", [True, False])
def test_the_distribution_for_the_cpu_lacks_the_library(
    provider: str, is_there: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without an import of ONNX Runtime, so before anything is trained."""
    backend, name = f"onnxruntime_{provider}", f"libonnxruntime_providers_{provider}.so"
    (tmp_path / "capi").mkdir()
    if is_there:
        (tmp_path / "capi" / name).touch()
    spec = ModuleSpec("onnxruntime", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: spec)
    assert infer.installed(backend) == is_there
    with nullcontext() if is_there else pytest.raises(UnsupportedError, match=f"needs {name}"):
        infer.check(backend, "cuda")


def test_providers_in_order_on_one_stream() -> None:
    provider = bound.Provider("First", {"a": "1"}, {"graph": "1"}, ("Second",))
    stream = {"user_compute_stream": "7"}
    assert provider.list(7, graph=False) == [("First", {"a": "1"} | stream), ("Second", stream)]
    assert provider.list(7, graph=True)[0] == ("First", {"a": "1", "graph": "1"} | stream)
