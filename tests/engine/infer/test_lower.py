"""Lowering to integer products: the values stay the same, and no product stays in float."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from buzzer.engine import infer, quant
from buzzer.engine.infer import Plan
from buzzer.engine.infer.onnx.export import export
from buzzer.engine.infer.onnx.lower import lower
from buzzer.errors import UnsupportedError


class Shared(torch.nn.Module):
    """Two layers with one input, one of them without a bias, and a third layer on their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(12, 8), torch.nn.Linear(12, 4, bias=False)
        self.out = torch.nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([self.left(x), self.right(x)], dim=-1).relu())


def quantised() -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(0.5, 1, (3, 5, 12)).astype("float32")} for _ in range(4)]
    return quant.quantise(Shared(), batches, precision="int8"), batches[0]


@pytest.mark.parametrize("open_batch", [True, False])
def test_products_that_share_an_input_become_one(open_batch: bool) -> None:
    model, batch = quantised()
    axes: dict[str, dict[int, str]] = {"x": {0: "batch"} if open_batch else {}}
    graph = export(Plan(model, batch, ("y",), axes, "int8", "cpu", 1))
    ops = Counter(node.op_type for node in onnx.load_from_string(lower(graph)).graph.node)
    assert ops["MatMulIntegerToFloat"] == ops["QuantizeLinear"] == 2
    assert ops["Split"] == 1
    assert ops["MatMul"] == ops["DequantizeLinear"] == ops["Add"] == 0


@pytest.mark.usefixtures("whole_sums")
@pytest.mark.parametrize("open_batch", [True, False])
def test_the_lowered_graph_agrees_with_the_module(open_batch: bool) -> None:
    model, batch = quantised()
    axes: dict[str, dict[int, str]] = {"x": {0: "batch"} if open_batch else {}}
    with torch.inference_mode():
        want = model(torch.from_numpy(batch["x"])).numpy()
    with infer.prepare(
        model, backend="onnxruntime", example=batch, dynamic=axes, precision="int8"
    ) as session:
        np.testing.assert_allclose(session.run(batch)["output"], want, rtol=1e-4, atol=1e-4)


def test_a_graph_without_quantise_nodes_is_not_changed() -> None:
    batch = {"x": np.zeros((2, 5, 12), dtype="float32")}
    graph = export(Plan(Shared().eval(), batch, ("y",), {"x": {}}, "fp32", "cpu", 1))
    before, after = (onnx.load_from_string(g) for g in (graph, lower(graph)))
    assert [n.op_type for n in before.graph.node] == [n.op_type for n in after.graph.node]
    assert len(after.opset_import) == len(before.opset_import)


class Head(torch.nn.Module):
    """A layer on two-dimensional inputs, which is exported as a Gemm, and a product without a constant, which is not lowered."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(x)
        return y @ y.T


def by_hand(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The product in integers: DynamicQuantizeLinear of the ONNX specification, and weights [in, out] symmetric by column."""
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    q = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    steps = np.abs(weight).max(axis=0) / 127
    return scale * steps * (q @ np.rint(weight / steps)) + bias


def test_dynamic_products_share_their_input_and_its_scale() -> None:
    batch = quantised()[1]
    graph = export(Plan(Shared().eval(), batch, ("y",), {"x": {}}, "fp32", "cpu", 1))
    ops = Counter(node.op_type for node in onnx.load_from_string(lower(graph, dynamic=True)).graph.node)
    assert ops["MatMulIntegerToFloat"] == ops["DynamicQuantizeLinear"] == 2
    assert ops["Split"] == 1
    assert ops["MatMul"] == ops["Gemm"] == ops["Add"] == 0


def test_dynamic_products_by_hand() -> None:
    """Every second weight is 0, so that sums of pairs do not saturate on any processor."""
    torch.manual_seed(0)
    head, x = Head().eval(), np.random.default_rng(0).normal(0.5, 1, (7, 12)).astype("float32")
    head.head.weight.data[:, 1::2] = 0
    graph = export(Plan(head, {"x": x}, ("y",), {"x": {}}, "fp32", "cpu", 1))
    ops = Counter(node.op_type for node in onnx.load_from_string(lower(graph, dynamic=True)).graph.node)
    assert (ops["MatMulIntegerToFloat"], ops["MatMul"], ops["Gemm"]) == (1, 1, 0)
    y = by_hand(x, head.head.weight.detach().numpy().T, head.head.bias.detach().numpy())
    with infer.prepare(
        head, backend="onnxruntime", example={"x": x}, dynamic={"x": {}}, precision="int8-dynamic"
    ) as session:
        np.testing.assert_allclose(session.run({"x": x})["output"], y @ y.T, rtol=1e-4, atol=1e-4)


def test_a_file_with_old_operators_is_refused(tmp_path: Path) -> None:
    graph = export(
        Plan(Head().eval(), {"x": np.zeros((2, 12), "float32")}, ("y",), {"x": {}}, "fp32", "cpu", 1)
    )
    model = onnx.load_from_string(graph)
    model.opset_import[0].version = 9
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(UnsupportedError, match="opset 9, but int8-dynamic needs 11"):
        lower(tmp_path / "old.onnx", dynamic=True)
