"""CUDA graphs of torch and TensorRT sessions, on a stand-in for the CUDA API and on a GPU."""

import copy
import ctypes
import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from buzzer.engine import infer
from buzzer.engine.infer import Array, Session
from buzzer.engine.infer.cuda_graphs import WARMUPS
from buzzer.engine.infer.session import Staging
from tests.engine.infer.cuda_stand_in import Cuda, Graph, stand_in


class Net(torch.nn.Module):
    """A network with ids and floats as inputs, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.first = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 8)
        self.norm, self.last = torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)
        self.calls: list[str] = []
        self.stream = lambda: ""

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.append(self.stream())
        hidden = self.norm(torch.relu(self.first(self.table(ids).mean(1) + x)))
        return self.last(hidden), hidden


class Mixed(Net):
    """Continues in FP32 from the middle on, as a module with a mean over tokens may."""

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.first(self.table(ids).mean(1) + x).to(torch.float32)
        return self.last(hidden), hidden


class Waits(Net):
    """Reads a value on the host, which a capture does not allow."""

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(ids, x * (2.0 if float(x.sum()) == 12345.0 else 1.0))


def batch(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"ids": rng.integers(0, 20, (2, 5)), "x": rng.normal(size=(2, 8)).astype("float32")}


def expected(net: Net, given: dict[str, Array]) -> list[Array]:
    double = copy.deepcopy(net).double()
    with torch.inference_mode():
        outputs = double(torch.from_numpy(given["ids"]), torch.from_numpy(given["x"]).double())
    return [t.numpy() for t in outputs]


def prepared(
    net: Net, precision: str = "fp32", backend: str = "torch_eager", open_axes: bool = False
) -> Session:
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} if open_axes else {} for name in ("ids", "x")}
    return infer.prepare(
        net,
        backend=backend,
        example=batch(0),
        outputs=("y", "h"),
        dynamic=axes,
        precision=precision,
        device="cuda",
    )


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with stand_in(monkeypatch) as state:
        yield state


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        yield
    else:
        request.getfixturevalue("cuda")
        yield


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.1)])
@pytest.mark.usefixtures("device")
def test_each_replay_computes_its_own_input(precision: str, tolerance: float) -> None:
    net = Net().eval()
    weights = copy.deepcopy(net.state_dict())
    with prepared(net, precision) as session:
        description = session.describe()
        for seed in (1, 2, 3, 1):
            session.poison()
            outputs = session.run(given := batch(seed))
            for name, want in zip(("y", "h"), expected(net.cpu(), given), strict=True):
                assert outputs[name].dtype == np.float32
                np.testing.assert_allclose(outputs[name], want, atol=tolerance * np.abs(want).max())
    assert description.graph is True
    assert description.notes == ()
    assert description.weight_bytes == sum(w.numel() for w in net.parameters()) * (
        4 if precision == "fp32" else 2
    )
    for name, weight in net.state_dict().items():  # the caller's module is unchanged
        assert torch.equal(weight.cpu(), weights[name])


def test_a_capture_is_warmed_up_on_a_side_stream(cuda: Cuda) -> None:
    net = Net().eval()
    net.stream = lambda: "captured" if cuda.recorder else cuda.on
    with prepared(net) as session:
        assert net.calls == ["side"] * WARMUPS + ["captured"]
        assert cuda.events == ["side waits for main", "main waits for side", "synchronize", "capture"]
        session.run(batch(1))
        session.run(batch(2))
        assert cuda.events[4:] == ["replay", "replay"]
        assert len(net.calls) == WARMUPS + 1  # a replay runs no Python of the module


def test_weights_are_converted_once(cuda: Cuda) -> None:
    with prepared(Net().eval(), "bf16"):
        assert not [name for name in cuda.graphs[0].recorder.names if "_to_copy" in name]


def test_only_the_replay_is_between_stage_and_fetch(cuda: Cuda) -> None:
    with prepared(Net().eval()) as session:
        assert isinstance(session, Staging)
        staged = session.stage(batch(1))
        before = len(cuda.events)
        session.replay(staged)
        assert cuda.events[before:] == ["replay"]
        first = session.fetch(staged)["y"].copy()
        session.poison()
        assert np.isnan(session.fetch(staged)["y"]).all()  # the buffer is reused
        session.replay(staged)
        np.testing.assert_array_equal(session.fetch(staged)["y"], first)


@pytest.mark.usefixtures("device")
def test_a_module_that_cannot_be_captured_runs_with_a_note() -> None:
    net = Waits().eval()
    with prepared(net) as session:
        description = session.describe()
        outputs = session.run(given := batch(4))
    np.testing.assert_allclose(outputs["y"], expected(net.cpu(), given)[0], atol=1e-5)
    assert description.graph is False
    assert (
        "torch_eager fp32 ran without a CUDA graph, because it could not be captured" in description.notes[0]
    )
    assert "\n" not in description.notes[0]


@pytest.mark.usefixtures("device")
def test_with_open_axes_there_is_no_graph() -> None:
    net = Net().eval()
    with prepared(net, open_axes=True) as session:
        description = session.describe()
        given = {name: array[:1] for name, array in batch(5).items()}
        outputs = session.run(given)
    np.testing.assert_allclose(outputs["y"], expected(net.cpu(), given)[0], atol=1e-5)
    assert description.graph is False
    assert "axes are not fixed" in description.notes[0]


@pytest.mark.usefixtures("device")
def test_a_module_of_several_types_runs_under_autocast() -> None:
    net = Mixed().eval()
    with prepared(net, "bf16") as session:
        description = session.describe()
        outputs = session.run(given := batch(6))["y"]
    want = expected(as_plain(net), given)[0]
    np.testing.assert_allclose(outputs, want, atol=0.1 * np.abs(want).max())
    assert description.graph is True
    assert "under autocast, because the module mixes types" in description.notes[0]


def as_plain(net: Mixed) -> Net:
    """A network with the same weights that uses one type."""

    class Plain(Mixed):
        def forward(self, ids: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = self.first(self.table(ids).mean(1) + x)
            return self.last(hidden), hidden

    plain = Plain()
    plain.load_state_dict({name: weight.cpu() for name, weight in net.state_dict().items()})
    return plain


def test_out_of_memory_raises(cuda: Cuda) -> None:
    class Large(Net):
        def forward(self, ids: torch.Tensor, x: torch.Tensor) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        prepared(Large().eval())


def test_torch_compile_makes_no_graphs_of_its_own(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: calls.append(options) or module)
    monkeypatch.setattr("buzzer.engine.infer.backends.torch_compile.has_compiled", lambda module: True)
    net = Net().eval()
    with prepared(net, backend="torch_compile") as session:
        outputs = session.run(given := batch(7))
        assert session.describe().graph is True
    np.testing.assert_allclose(outputs["y"], expected(net, given)[0], atol=1e-5)
    assert calls == [{"dynamic": False, "mode": "max-autotune-no-cudagraphs"}]


# ---- TensorRT -----------------------------------------------------------------------------------------------------


class Engine:
    """A stand-in for an engine and its context: y = 2 x, on addresses; recorded during a capture."""

    num_io_tensors, num_layers = 2, 1
    shapes: dict[str, tuple[int, ...]]
    addresses: dict[str, int]

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.shapes, self.addresses = cuda, {}, {}

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"x": "in", "y": "out"}[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return np.float32

    def create_execution_context(self) -> "Engine":
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["x"]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        count, (x, y) = int(np.prod(self.shapes["x"])), (self.addresses["x"], self.addresses["y"])

        def step() -> None:
            given, out = ((ctypes.c_float * count).from_address(at) for at in (x, y))
            out[:] = [2 * value for value in given]

        step()
        if self.cuda.recorder is not None:
            self.cuda.recorder.steps.append(step)
        return True


@pytest.mark.skipif(infer.installed("tensorrt"), reason="TensorRT itself is here")
def test_tensorrt_replays_on_static_buffers(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(cuda)
    fake = SimpleNamespace(
        __spec__=ModuleSpec("tensorrt", None),  # torch looks for it when it imports its compiler
        __version__="stand-in",
        Logger=type("Logger", (), {"ERROR": 0, "__init__": lambda self, level: None}),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda built: engine),
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        nptype=lambda dtype: dtype,
    )
    name = "buzzer.engine.infer.backends.tensorrt"
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    # After the test, the module is as before: absent, or the one without the stand-in.
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    del sys.modules[name]
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "build", lambda plan, logger: b"")
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(2, 3)).astype("float32")} for _ in range(3)]
    model = torch.nn.Identity()
    common = {"backend": "tensorrt", "example": batches[0], "outputs": ("y",), "device": "cuda"}
    with infer.prepare(model, dynamic={"x": {}}, **common) as session:  # type: ignore[arg-type]
        for given in batches:
            session.poison()
            np.testing.assert_allclose(session.run(given)["y"], 2 * given["x"])
        assert session.describe().graph is True
    assert cuda.events.count("replay") == 3
    with infer.prepare(model, **common) as session:  # type: ignore[arg-type]
        np.testing.assert_allclose(session.run(given := {"x": batches[1]["x"][:1]})["y"], 2 * given["x"])
        assert session.describe().graph is False
        assert "axes are not fixed" in session.describe().notes[0]


def test_the_stand_in_replays_a_graph() -> None:
    """Also in-place operations and views."""
    cuda = Cuda()
    x = torch.arange(4.0)
    graph = Graph(cuda)
    with cuda.graph(graph):
        y = (x.view(2, 2) + 1).t()
        y[0] *= 2
    assert y.flatten().tolist() == [2.0, 6.0, 2.0, 4.0]
    x.fill_(1.0)
    graph.replay()
    assert y.flatten().tolist() == [4.0, 4.0, 2.0, 2.0]
