"""Exports torch modules as ONNX graphs."""

import io
import logging
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from buzzer.engine.infer.onnx import graphs
from buzzer.engine.infer.session import Array, Plan

# Weights of these types and at least so many values are kept from the exporter.
FLOATS, LARGE = (torch.float32, torch.float16), 1 << 16
FOLDED = {"Concat", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}


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
            Given(module, weights).eval(),
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
    return with_constants(model, fold(model.graph, weights))


@dataclass(frozen=True)
class Weight:
    """A large weight, and the places in modules that share it: a module's parameters or buffers, and a name among them."""

    name: str
    value: Tensor
    places: list[tuple[dict[str, Any], str]]


@contextmanager
def holding(weights: Sequence[Weight], values: Sequence[Tensor]) -> Iterator[None]:
    """The modules have these values in place of the weights inside the context."""
    places = [
        (*place, value) for weight, value in zip(weights, values, strict=True) for place in weight.places
    ]
    before = [owner[key] for owner, key, _ in places]
    try:
        for owner, key, value in places:
            owner[key] = value
        yield
    finally:
        for (owner, key, _), own in zip(places, before, strict=True):
            owner[key] = own


class Given(nn.Module):
    """A module that is given its large weights as its last inputs."""

    def __init__(self, module: nn.Module, weights: Sequence[Weight]) -> None:
        super().__init__()
        self.module, self.weights = module, weights

    def forward(self, *inputs: Tensor) -> Any:
        """The module's outputs."""
        own = len(inputs) - len(self.weights)
        with holding(self.weights, inputs[own:]):
            return self.module(*inputs[:own])


@contextmanager
def apart(module: nn.Module) -> Iterator[list[Weight]]:
    """The large float weights of a module, without those of recurrent layers. Inside the context the module has empty ones."""
    found: dict[int, Weight] = {}
    for part in module.modules():
        for owner in (part._parameters, part._buffers) if not isinstance(part, nn.RNNBase) else ():
            for key, value in owner.items():
                if value is not None and value.dtype in FLOATS and value.numel() >= LARGE:
                    weight = Weight(f"large.{len(found)}.{key}", value, [])
                    found.setdefault(id(value), weight).places.append((owner, key))
    weights = list(found.values())
    with holding(weights, [weight.value.new_empty(0) for weight in weights]):
        yield weights


def fold(graph: Any, weights: Sequence[Weight]) -> dict[str, Array]:
    """The constants that a graph lacks: weights, which are no inputs afterwards, and what nodes of FOLDED make of them."""
    from onnx.reference import ReferenceEvaluator

    known = constants(graph) | {weight.name: weight.value.detach().numpy() for weight in weights}
    large = {weight.name for weight in weights}  # and what is made of them
    made: dict[Hashable, str] = {}  # node and inputs -> result
    same: dict[str, str] = {}  # result -> an equal one
    folded = []
    for node in graph.node:
        names = [same.get(name, name) for name in node.input]
        if node.op_type not in FOLDED or large.isdisjoint(names) or not known.keys() >= {*names}:
            continue
        folded.append(node)
        (output,) = node.output
        inputs = [name if name in large else known[name].tobytes() for name in names]
        key = (node.op_type, *inputs, *(attribute.SerializeToString() for attribute in node.attribute))
        same[output] = made.setdefault(key, output)
        if same[output] == output:
            feeds = dict(zip(node.input, (known[name] for name in names), strict=True))
            results: Any = ReferenceEvaluator(node).run(None, feeds)
            known[output] = results[0]
            large.add(output)
    for node in folded:
        graph.node.remove(node)
    for node in graphs.nodes(graph):
        node.input[:] = [same.get(name, name) for name in node.input]
    read = graphs.names_read(graph)
    for entry in [entry for entry in graph.input if entry.name in large]:
        graph.input.remove(entry)
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] not in read]:
        graph.node.remove(node)
    return {name: known[name] for name in sorted(large & read)}


def constants(graph: Any) -> dict[str, Array]:
    """The constants of a graph, by name."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensors |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}


def with_constants(model: Any, arrays: Mapping[str, Array]) -> bytes:
    """A serialised model with further constants.

    They are appended as a second part of the graph: a reader merges the parts of a message (Protocol Buffers, Encoding, "Last One Wins").
    Thus the values are copied once, and not three times.
    """
    from onnx import GraphProto, ModelProto, TensorProto, helper

    parts: list[Any] = []
    for name, array in arrays.items():
        values = np.ascontiguousarray(array).data.cast("B")
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        facts = TensorProto(name=name, dims=array.shape, data_type=kind).SerializeToString()
        tensor = facts + tag(TensorProto, "raw_data") + varint(len(values))
        parts += [tag(GraphProto, "initializer") + varint(len(tensor) + len(values)) + tensor, values]
    graph = tag(ModelProto, "graph") + varint(sum(map(len, parts)))
    return b"".join([model.SerializeToString(), graph, *parts])


def tag(message: Any, field: str) -> bytes:
    """What stands before the length of a message's field of bytes (wire type 2)."""
    return varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | 2)


def varint(number: int) -> bytes:
    """A number in base 128, the least digit first; all but the last have the highest bit set."""
    digits = []
    while number >= 128:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])
