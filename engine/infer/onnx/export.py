"""Exports torch modules as ONNX graphs."""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from buzzer.engine.infer.onnx import graphs
from buzzer.engine.infer.session import Array, Plan

LARGE = 1 << 16  # values of a weight from which the exporter does not see it


def export(plan: Plan) -> bytes:
    """The plan's torch module as a serialised ONNX graph with the plan's dynamic axes.

    Uses torch's tracing exporter. It exports Embedding, Linear, BatchNorm, GRU and attention exactly; the newer exporter
    unrolls a GRU over the example's steps. Quantised layers (buzzer.engine.quant) become QuantizeLinear and
    DequantizeLinear around a MatMul, with eight-bit constants as weights.

    The exporter serialises a graph with its weights several times, to infer shapes. So large tables and matrices are inputs for the
    exporter, and become constants of its graph afterwards.
    """
    import onnx

    from buzzer.engine import quant

    module = quant.freeze(plan.model.to("cpu").eval())
    inputs = tuple(torch.from_numpy(plan.example[name]) for name in plan.example)
    axes = {name: dict(axes) for name, axes in plan.dynamic.items() if axes}
    batch = next((axes[0] for axes in plan.dynamic.values() if 0 in axes), None)
    outputs = {name: {0: batch} for name in plan.outputs} if batch else {}
    buffer = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), apart(module) as weights:
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Given(module, weights),
            (*inputs, *(weight.value for weight in weights)),
            buffer,  # type: ignore[arg-type]
            input_names=[*plan.example, *(weight.name for weight in weights)],
            output_names=list(plan.outputs),
            dynamic_axes=axes | outputs,
            # 19 is the first opset with float8.
            opset_version=19 if quant.precision_of(module) == "fp8" else 17,
            dynamo=False,
        )
    if not weights:
        return buffer.getvalue()
    model = onnx.load_from_string(buffer.getvalue())
    fill(model.graph, weights)
    return bytes(model.SerializeToString())


@dataclass(frozen=True)
class Weight:
    """A large weight and the layers that share it."""

    name: str
    layers: list[nn.Module]
    value: Tensor

    def become(self, value: Tensor) -> None:
        """Give the layers another weight."""
        for layer in self.layers:
            layer._parameters["weight"] = value  # type: ignore[assignment]  # the tracer's tensors are not parameters


class Given(nn.Module):
    """A module that is given its large weights as its last inputs."""

    def __init__(self, module: nn.Module, weights: Sequence[Weight]) -> None:
        super().__init__()
        self.module, self.weights = module, weights

    def forward(self, *inputs: Tensor) -> Any:
        """The module's outputs."""
        own = len(inputs) - len(self.weights)
        for weight, value in zip(self.weights, inputs[own:], strict=True):
            weight.become(value)
        return self.module(*inputs[:own])


@contextmanager
def apart(module: nn.Module) -> Iterator[list[Weight]]:
    """The large weights of the module's embeddings and linear layers. Inside the context the layers have empty ones."""
    found: dict[int, Weight] = {}
    for name, layer in module.named_modules():
        if type(layer) in (nn.Embedding, nn.Linear) and layer.weight.numel() >= LARGE:
            weight = Weight(f"{name}.weight".lstrip("."), [], layer.weight)
            found.setdefault(id(layer.weight), weight).layers.append(layer)
    weights = list(found.values())
    try:
        for weight in weights:
            weight.become(weight.value.new_empty(0))
        yield weights
    finally:
        for weight in weights:
            weight.become(weight.value)


def fill(graph: Any, weights: Sequence[Weight]) -> None:
    """Replace the inputs of a graph that are weights by constants, transposed where the graph transposes them."""
    arrays = {weight.name: weight.value.detach().numpy() for weight in weights}
    names: dict[str, str] = {}  # output of a transpose -> constant
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in arrays]:
        name = f"{node.input[0]}.T"
        if name not in names.values():
            add(graph, name, arrays[node.input[0]].T)
        names[node.output[0]] = name
        graph.node.remove(node)
    for node in graphs.nodes(graph):
        node.input[:] = [names.get(name, name) for name in node.input]
    for entry in [entry for entry in graph.input if entry.name in arrays]:
        graph.input.remove(entry)
    read = {name for node in graphs.nodes(graph) for name in node.input}
    for name in sorted(arrays.keys() & read):
        add(graph, name, arrays[name])


def add(graph: Any, name: str, array: Array) -> None:
    """Add a constant to a graph, in place: the functions of onnx copy the values twice."""
    from onnx import helper

    tensor = graph.initializer.add()
    tensor.name, tensor.data_type = name, helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims.extend(array.shape)
    tensor.raw_data = array.tobytes()
