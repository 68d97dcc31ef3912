"""ONNX files: their inputs, their costs, and runs on every backend."""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from buzzer.engine import infer
from buzzer.engine.infer import Plan
from buzzer.engine.infer.cost import cost_of, row_flops
from buzzer.engine.infer.onnx import graphs
from buzzer.engine.infer.onnx.export import export
from buzzer.errors import DataError, UnsupportedError


class Cnn(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 6 * 6, 5)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.body(image)


class Rnn(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(30, 8)
        self.gru = torch.nn.GRU(8, 6, batch_first=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.gru(self.table(ids))[0]


class Large(torch.nn.Module):
    """Large weights: a table, a layer that shares it, one that is transposed in the graph, in two places, and a part of one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(300, 256)
        self.square = torch.nn.Linear(256, 256)
        self.again = torch.nn.ModuleList([self.square])
        self.head = torch.nn.Linear(256, 300, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("sums", torch.randn(300, 260))
        self.gru = torch.nn.GRU(256, 256, batch_first=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        words = self.table(ids)  # three axes, so a product is a Transpose and a MatMul
        words = self.again[0](self.square(words).tanh())
        cls = self.gru(words)[1][0] + torch.nn.functional.embedding(ids[:, 0], self.sums)[:, 4:]
        return torch.cat(
            [self.head(cls), cls @ self.table.weight[2:].T, cls @ self.table.weight[2:].T], dim=1
        )


def plan(model: torch.nn.Module) -> Plan:
    """A plan for the export, with an open batch, and open steps if the model has steps."""
    if isinstance(model, Cnn):
        example: dict[str, Any] = {"image": np.zeros((2, 3, 8, 8), dtype="float32")}
        axes = {"image": {0: "batch"}}
    else:
        example, axes = {"ids": np.zeros((2, 7), dtype="int64")}, {"ids": {0: "batch", 1: "steps"}}
    return Plan(model.eval(), example, ("out",), axes, "fp32", "cpu", 1)


@pytest.fixture(params=[Cnn, Rnn, Large])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[torch.nn.Module, Path]:
    torch.manual_seed(0)
    model = request.param()
    path = tmp_path / "model.onnx"
    path.write_bytes(export(plan(model)))
    return model, path


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_file_is_run_with_inferred_inputs(backend: str, exported: tuple[torch.nn.Module, Path]) -> None:
    try:
        infer.load(backend)
    except UnsupportedError as error:
        pytest.skip(error.message)
    model, path = exported
    signature = graphs.signature(path)
    rng = np.random.default_rng(0)
    batch = {entry.name: graphs.sample(entry, 3, 5, rng) for entry in signature.inputs}
    fixed: dict[str, dict[int, str]] = {name: {} for name in batch}
    with infer.prepare(
        path, backend=backend, example=batch, outputs=signature.outputs, dynamic=fixed
    ) as session:
        got = session.run(batch)["out"]
    with torch.inference_mode():
        want = model(*map(torch.from_numpy, batch.values())).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_file_keeps_its_own_precision(tmp_path: Path) -> None:
    from buzzer.engine import quant

    batch = {"image": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype("float32")}
    eight = quant.quantise(Cnn().eval(), [batch], precision="int8")
    axes: dict[str, dict[int, str]] = {"image": {}}
    plans = {"fp32": plan(Cnn()), "int8": Plan(eight, batch, ("out",), axes, "int8", "cpu", 1)}
    for own, other in (("fp32", "int8"), ("int8", "fp32")):
        path = tmp_path / f"{own}.onnx"
        path.write_bytes(export(plans[own]))
        given: dict[str, Any] = {
            "backend": "onnxruntime",
            "example": batch,
            "outputs": ("out",),
            "dynamic": axes,
        }
        with infer.prepare(path, precision=own, **given) as session:
            assert session.run(batch)["out"].shape == (2, 5)
        with pytest.raises(UnsupportedError, match=f"cannot run in {other}"):
            infer.prepare(path, precision=other, **given)


def test_inputs_are_inferred_from_the_graph(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(export(plan(Rnn())))
    (entry,) = graphs.signature(path).inputs
    assert (entry.name, entry.dtype, entry.shape, entry.below) == ("ids", np.int64, ("batch", "steps"), 30)
    ids = graphs.sample(entry, 100, 9, np.random.default_rng(0))
    assert ids.shape == (100, 9)
    assert (ids.min(), ids.max()) == (0, 29)


@pytest.mark.parametrize(
    ("name", "dtype", "value"),
    [("attention_mask", "int64", 1), ("token_type_ids", "int64", 0), ("flag", "bool", 1)],
)
def test_masks_are_ones_and_types_are_zeros(name: str, dtype: str, value: int) -> None:
    entry = graphs.Input(name, np.dtype(dtype), ("batch", "sequence"), None)
    values = graphs.sample(entry, 2, 3, np.random.default_rng(0))
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, np.full((2, 3), value))


def test_files_that_are_not_onnx_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(DataError, match="not an ONNX model"):
        graphs.signature(tmp_path / "bad.onnx")
    with pytest.raises(DataError, match="not an ONNX model"):
        graphs.signature(tmp_path / "missing.onnx")


@pytest.mark.parametrize("exported", [Cnn, Rnn], indirect=True)
def test_costs_by_hand(exported: tuple[torch.nn.Module, Path]) -> None:
    """The module and its graph have the same cost."""
    model, path = exported
    if isinstance(model, Cnn):
        batch: dict[str, Any] = {"image": np.zeros((2, 3, 8, 8), dtype="float32")}
        flops = 2 * 2 * (4 * 6 * 6 * 3 * 3 * 3 + 144 * 5)
        weights, rest = 4 * 27 + 4 + 144 * 5 + 5, 4 * (2 * 3 * 64 + 2 * 5)
    else:
        batch = {"ids": np.zeros((2, 7), dtype="int64")}
        flops = 2 * 14 * (3 * 6 * 8 + 3 * 6 * 6)
        weights, rest = 3 * 6 * (8 + 6 + 2), 14 * 8 * 4 + 14 * 8 + 14 * 6 * 4
    for source in (model, path):
        cost = cost_of(source, batch)
        assert cost is not None
        assert cost.flops == flops
        assert cost.rest == rest
        # The exporter adds shape constants.
        assert weights <= cost.weights <= weights + 50
    assert cost_of(Path("trees.ubj"), batch) is None


class Scores(torch.nn.Module):
    """A GRU over 7 steps, attention among them, and scores of 50 items, whose table is made once for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.items = torch.nn.GRU(4, 6, batch_first=True), torch.nn.Linear(5, 6)
        self.register_buffer("facts", torch.zeros(50, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = self.gru(x)[0][:, None]
        mixed = torch.nn.functional.scaled_dot_product_attention(states, states, states)
        return mixed[:, 0, -1] @ self.items(self.facts).T


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_of_a_further_row_by_hand(device: str) -> None:
    with torch.device(device):
        model = Scores().eval()
    steps, attention, scores = 7 * 3 * 6 * (4 + 6), 2 * 7 * 7 * 6, 50 * 6
    row = {"x": np.zeros((1, 7, 4), dtype="float32")}
    assert row_flops(model, row) == 2 * (steps + attention + scores)
    cost = cost_of(model, {"x": np.zeros((3, 7, 4), dtype="float32")})
    assert cost is not None and cost.flops == 3 * row_flops(model, row) + 2 * 50 * 5 * 6


def test_attention_is_counted() -> None:
    class Attend(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    cost = cost_of(Attend(), {"x": np.zeros((2, 3, 16, 8), dtype="float32")})
    assert cost is not None
    assert cost.flops == 2 * 3 * 2 * 2 * 16 * 16 * 8


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_large_weights_are_constants_of_the_graph(kind: str) -> None:
    """They are those of the module, which has them again after the export."""
    import onnx

    torch.manual_seed(0)
    model = Large().eval().to(getattr(torch, kind))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    graph = onnx.load_from_string(export(plan(model))).graph
    assert [entry.name for entry in graph.input] == ["ids"]
    shapes = [list(weight.dims) for weight in graph.initializer if prod(weight.dims) >= 2**16]
    assert sorted(shapes) == sorted(
        [[300, 256], [300, 260], [256, 256], [256, 300], [256, 298], [1, 768, 256], [1, 768, 256]]
    )
    assert model.head.weight is model.table.weight and not model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
