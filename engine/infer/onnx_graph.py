"""ONNX graphs: written from torch modules, and read for what inputs they take."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.infer.session import Array, Plan
from buzzer.errors import DataError


def export(plan: Plan) -> bytes:
    """The plan's torch module as an ONNX graph, dynamic axes kept.

    By the tracing exporter: torch's newer one unrolls a GRU over the example's steps, and Embedding, Linear,
    BatchNorm, GRU and attention trace exactly. Quantised layers (buzzer.engine.quant) become QuantizeLinear and
    DequantizeLinear around a MatMul, their weights eight-bit constants.
    """
    import logging
    import warnings

    import torch

    from buzzer.engine import quant

    inputs = tuple(torch.from_numpy(plan.example[name]) for name in plan.example)
    axes = {name: dict(axes) for name, axes in plan.dynamic.items() if axes}
    batch = next((axes[0] for axes in plan.dynamic.values() if 0 in axes), None)
    outputs = {name: {0: batch} for name in plan.outputs} if batch else {}
    buffer = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            quant.freeze(plan.model.to("cpu").eval()),
            inputs,
            buffer,  # type: ignore[arg-type]
            input_names=list(plan.example),
            output_names=list(plan.outputs),
            dynamic_axes=axes | outputs,
            opset_version=19 if quant.precision_of(plan.model) == "fp8" else 17,  # float8 came with 19
            dynamo=False,
        )
    return buffer.getvalue()


@dataclass(frozen=True)
class Input:
    """One input of a graph; an axis is a size, or a name where it is open."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]
    below: (
        int | None
    )  # bound of token ids: rows of the table that the input looks up; None where it looks up none


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives."""

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]


def read(path: Path, weights: bool = False) -> Any:
    """The file's model; weights in files beside it only where asked for. Raises DataError for a file that is missing or none."""
    import onnx

    try:
        return onnx.load(str(path), load_external_data=weights)
    except Exception as error:  # protobuf and onnx raise many kinds
        raise DataError(f"{path}: not an ONNX model that can be loaded: {error}") from error


def files(path: Path) -> list[Path]:
    """The file and those beside it that hold its weights. Raises DataError for a file that is missing or no ONNX graph."""
    held = {
        entry.value
        for weight in read(path).graph.initializer
        for entry in weight.external_data
        if entry.key == "location"
    }
    return [path, *(path.parent / name for name in sorted(held))]


def quantised(path: Path) -> bool:
    """Whether the file computes in eight bits: it has quantise nodes or integer products."""
    kinds = {node.op_type for node in read(path).graph.node}
    return bool(
        kinds & {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "ConvInteger"}
    )


def signature(path: Path) -> Signature:
    """The inputs and outputs of an ONNX file. Raises DataError for a file that is missing or no ONNX graph."""
    graph = read(path).graph
    weights = {i.name: i.dims for i in graph.initializer}
    inputs = tuple(_input(entry, graph, weights) for entry in graph.input if entry.name not in weights)
    if not inputs:
        raise DataError(f"{path}: not an ONNX model that can be timed: it takes no input")
    return Signature(inputs, tuple(o.name for o in graph.output))


def _input(entry: Any, graph: Any, weights: Mapping[str, Any]) -> Input:
    import onnx

    kind = entry.type.tensor_type
    shape: list[int | str] = []
    for axis, dim in enumerate(kind.shape.dim):
        shape.append(dim.dim_value if dim.dim_value > 0 else dim.dim_param or f"axis{axis}")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return Input(entry.name, dtype, tuple(shape), _rows(entry.name, graph, weights))


def _rows(name: str, graph: Any, weights: Mapping[str, Any]) -> int | None:
    """Rows of the table that an input indexes, itself or after a cast."""
    names = {name} | {n.output[0] for n in graph.node if n.op_type == "Cast" and n.input[0] == name}
    found = [
        weights[n.input[0]][0]
        for n in graph.node
        if n.op_type == "Gather" and n.input[1] in names and n.input[0] in weights
    ]
    return min(found) if found else None


def sizes(one: Input, batch: int, seq: int) -> tuple[int, ...]:
    """The input's shape with its open axes filled: the first, and any that is named a batch, by `batch`, others by
    `seq`."""
    filled = []
    for axis, size in enumerate(one.shape):
        if isinstance(size, str):
            filled.append(batch if axis == 0 or "batch" in size.lower() else seq)
        else:
            filled.append(size)
    return tuple(filled)


def sample(one: Input, batch: int, seq: int, rng: np.random.Generator) -> Array:
    """Random values of an input: normal floats, token ids below the table's size, masks of ones, types of zeros."""
    shape = sizes(one, batch, seq)
    if one.dtype.kind == "f":
        return rng.standard_normal(shape).astype(one.dtype)
    if "mask" in one.name.lower() or one.dtype.kind == "b":
        return np.ones(shape, dtype=one.dtype)
    if "type" in one.name.lower():
        return np.zeros(shape, dtype=one.dtype)
    return rng.integers(0, one.below or 2, shape).astype(one.dtype)
