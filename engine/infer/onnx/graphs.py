"""ONNX graphs: written from torch modules, and read for what inputs they take."""

import functools
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.infer.session import Array, Plan
from buzzer.errors import DataError, UnsupportedError, UsageError

MOST_VALUES = 1 << 30  # of one input
EIGHT_BITS = {  # operators of a file that computes in eight bits: quantise nodes and integer products
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearMatMul",
    "ConvInteger",
}


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
    """The file's model; weights in files beside it only where asked for.

    Raises DataError for a file that is missing or none, or that names files outside its own folder: what opens it would read those.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
        check_external(path, model)
        if weights:
            onnx.load_external_data_for_model(model, str(path.parent))
        return model
    except DataError:
        raise
    except Exception as error:  # protobuf and onnx raise many kinds
        raise DataError(f"{path}: not an ONNX model that can be loaded: {first_line(error)}") from error


def first_line(told: object) -> str:
    """The first line of what a library says, cut: some print whole graphs, or bytes of the file."""
    return next((line.strip()[:200] for line in str(told).splitlines() if line.strip()), type(told).__name__)


def nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph or function, and of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def tensors(model: Any) -> Iterator[Any]:
    """Every constant of a model: initializers and attributes, in inner graphs and functions too."""
    inside = [node for part in (model.graph, *model.functions) for node in nodes(part)]
    given = [attribute for node in inside for attribute in node.attribute]
    for graph in (model.graph, *(g for a in given for g in (a.g, *a.graphs))):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in given:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)


def locations(model: Any) -> set[str]:
    """Names of the files that hold constants, as they stand in the model."""
    return {entry.value for t in tensors(model) for entry in t.external_data if entry.key == "location"}


def check_external(path: Path, model: Any) -> None:
    """Raises DataError where the file has its weights outside of its folder, also through a link, or in what is no plain file."""
    home = path.resolve().parent
    for name in sorted(locations(model)):
        place = (home / name).resolve() if "\0" not in name else home
        if Path(name).is_absolute() or not place.is_relative_to(home):
            raise DataError(
                f"{path}: names weights outside its folder: {name[:200]!r}", "put them beside the file"
            )
        if place.exists() and not place.is_file():
            raise DataError(f"{path}: its weights {name[:200]!r} are no file")


def files(path: Path) -> list[Path]:
    """The file and those beside it that hold its weights. Raises DataError for a file that is missing or no ONNX graph."""
    return [path, *(path.parent / name for name in sorted(locations(read(path))))]


def precision(path: Path) -> str:
    """`int8` where the file computes in eight bits; else the type of most of its weights' values, or, where it has none, of its inputs.

    Raises DataError for a file that is missing or no ONNX graph.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path}: not an ONNX model that can be loaded: {error.strerror}") from error
    return _precision(path, facts.st_size, facts.st_mtime_ns)


@functools.cache
def _precision(path: Path, size: int, changed: int) -> str:
    from onnx import TensorProto

    model = read(path)
    if EIGHT_BITS & {node.op_type for node in model.graph.node}:
        return "int8"
    types = {
        TensorProto.FLOAT: "fp32",
        TensorProto.FLOAT16: "fp16",
        TensorProto.BFLOAT16: "bf16",
        TensorProto.DOUBLE: "fp64",
    }
    held: Counter[str] = Counter()
    for tensor in tensors(model):
        if tensor.data_type in types:
            held[types[tensor.data_type]] += prod(tensor.dims)
    inputs = (entry.type.tensor_type.elem_type for entry in model.graph.input)
    held = held or Counter(types[kind] for kind in inputs if kind in types)
    return held.most_common(1)[0][0] if held else "fp32"


def signature(path: Path) -> Signature:
    """The inputs and outputs of an ONNX file.

    Raises DataError for a file that is missing or no ONNX graph, UnsupportedError for inputs and outputs that are no tensors of numbers.
    """
    graph = read(path).graph
    weights = {i.name: i.dims for i in graph.initializer}
    inputs = tuple(_input(entry, graph) for entry in graph.input if entry.name not in weights)
    if not inputs:
        raise DataError(f"{path}: not an ONNX model that can be timed: it takes no input")
    if not graph.output:
        raise DataError(f"{path}: not an ONNX model that can be timed: it has no output")
    for entry in graph.output:
        _numbers("output", entry)
    return Signature(inputs, tuple(o.name for o in graph.output))


def _numbers(side: str, entry: Any) -> np.dtype[Any]:
    """The type of an input's or output's values. Raises UnsupportedError for what is no tensor of numbers."""
    import onnx

    kind = entry.type.WhichOneof("value")
    told = f"{side} {entry.name} is a {(kind or 'value').removesuffix('_type')}"
    if kind != "tensor_type":
        hint = "scikit-learn's converter gives tensors with options={'zipmap': False}"
        raise UnsupportedError(f"{told}, only tensors of numbers can be timed", hint)
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type))
    except (KeyError, TypeError) as error:
        raise DataError(f"{told} of no known type") from error
    if dtype.kind not in "fiub":
        what = "texts" if dtype.kind in "OUS" else f"{dtype}"
        raise UnsupportedError(
            f"{told} of {what}, only tensors of numbers can be timed", "cut the graph before or after it"
        )
    return dtype


def _input(entry: Any, graph: Any) -> Input:
    dtype = _numbers("input", entry)
    shape: list[int | str] = []
    for axis, dim in enumerate(entry.type.tensor_type.shape.dim):
        shape.append(dim.dim_value if dim.dim_value > 0 else dim.dim_param or f"axis{axis}")
    return Input(entry.name, dtype, tuple(shape), _below(entry.name, graph))


SAME_IDS = (
    "Cast",
    "Identity",
    "Unsqueeze",
    "Squeeze",
    "Reshape",
    "Flatten",
    "Transpose",
    "Expand",
    "Slice",
    "Concat",
)
SAME_TABLE = ("Cast", "Identity", "DequantizeLinear")


def _below(name: str, graph: Any) -> int | None:
    """The least size of the axes that an input indexes, itself or after nodes that hand its values on."""
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    names = {name}
    for node in graph.node:  # in the order in which they run
        if node.op_type == "Constant" and node.output:
            shapes[node.output[0]] = tuple(node.attribute[0].t.dims) if node.attribute else ()
        if node.op_type in SAME_TABLE and node.input and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
        if node.op_type in SAME_IDS and names & set(
            node.input[:1] if node.op_type != "Concat" else node.input
        ):
            names |= set(node.output)
    found = [
        shapes[node.input[0]][axis]
        for node in graph.node
        if node.op_type in ("Gather", "GatherElements") and len(node.input) == 2
        if node.input[1] in names and node.input[0] in shapes
        if -len(shapes[node.input[0]]) <= (axis := _axis(node)) < len(shapes[node.input[0]])
    ]
    return min((size for size in found if size > 0), default=None)


def _axis(node: Any) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 0)


def has_tokens(path: Path) -> bool:
    """Whether an input has an open axis beyond its rows, which `sizes` fills with the length."""
    return any(sizes(one, 1, 1) != sizes(one, 1, 2) for one in signature(path).inputs)


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
    """Random values of an input: normal floats, ids below the size of the axis that they index, masks of ones, types of zeros.

    Raises UsageError for an input of more than MOST_VALUES values.
    """
    shape = sizes(one, batch, seq)
    if prod(shape) > MOST_VALUES:
        raise UsageError(
            f"input {one.name} of {' x '.join(map(str, shape))} has more than {MOST_VALUES:,} values"
        )
    if one.below and one.dtype.kind == "f":  # cast to whole numbers inside the graph
        return rng.integers(0, one.below, shape).astype(one.dtype)
    if one.dtype.kind == "f":
        return rng.standard_normal(shape).astype(one.dtype)
    if "mask" in one.name.lower() or one.dtype.kind == "b":
        return np.ones(shape, dtype=one.dtype)
    if "type" in one.name.lower():
        return np.zeros(shape, dtype=one.dtype)
    return rng.integers(0, one.below or 2, shape).astype(one.dtype)
