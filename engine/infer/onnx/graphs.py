"""The inputs, outputs and precision of ONNX files, and sample inputs."""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.infer.session import Array
from buzzer.errors import DataError, UnsupportedError, UsageError, first_line

MOST_VALUES = 1 << 30  # limit for one input
UNKNOWN_WORDS = ("a", "b", "c", "d", "e", "f", "g", "h")  # for an input of texts of a graph that lists none
EIGHT_BITS = {  # operators of a quantised file: quantise nodes and integer products
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearMatMul",
    "ConvInteger",
}


@dataclass(frozen=True)
class Input:
    """One input of a graph."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]  # a size for each fixed axis, a name for each dynamic axis
    below: int | None  # rows of the smallest table that the input indexes; None if it indexes none
    words: tuple[str, ...] = ()  # texts that the graph knows, for an input of texts


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a graph."""

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]


def read(path: Path, weights: bool = False) -> Any:
    """An ONNX file's ModelProto. weights: also read weights that are stored in other files.

    Raises DataError for a file that is missing or is not an ONNX model, and for a file that stores weights outside its folder.
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
    except Exception as error:  # protobuf and onnx raise many types
        raise DataError(f"{path}: not an ONNX model that can be loaded: {first_line(error)}") from error


def nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph or function, and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def names_read(graph: Any) -> set[str]:
    """The names of the values that the nodes of a graph read, those of inner graphs among them."""
    return {name for node in nodes(graph) for name in node.input}


def tensors(model: Any) -> Iterator[Any]:
    """All constants of a model: initializers and attributes, including those of inner graphs and functions."""
    inside = [node for part in (model.graph, *model.functions) for node in nodes(part)]
    attributes = [attribute for node in inside for attribute in node.attribute]
    for graph in (model.graph, *(g for a in attributes for g in (a.g, *a.graphs))):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)


def locations(model: Any) -> set[str]:
    """The names of the external files with constants, as written in the model."""
    return {entry.value for t in tensors(model) for entry in t.external_data if entry.key == "location"}


def check_external(path: Path, model: Any) -> None:
    """Raises DataError if weights are stored outside the file's folder (links are followed), or if their path is not a regular
    file."""
    home = path.resolve().parent
    for name in sorted(locations(model)):
        place = (home / name).resolve() if "\0" not in name else home
        if Path(name).is_absolute() or not place.is_relative_to(home):
            raise DataError(
                f"{path}: its weights are outside its folder: {name[:200]!r}", "put them next to the file"
            )
        if place.exists() and not place.is_file():
            raise DataError(f"{path}: its weights {name[:200]!r} are not a regular file")


def files(path: Path) -> list[Path]:
    """The file and its external weight files. Raises DataError for a file that is missing or is not an ONNX graph."""
    return [path, *(path.parent / name for name in sorted(locations(read(path))))]


def precision(path: Path) -> str:
    """The precision of an ONNX file: "int8", "fp32", "fp16", "bf16" or "fp64".

    It is "int8" if the file has quantise nodes or integer products, else the type of most of its weight values. Without weights,
    it is the type of most inputs.

    Raises DataError for a file that is missing or is not an ONNX graph.
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
    values: Counter[str] = Counter()
    for tensor in tensors(model):
        if tensor.data_type in types:
            values[types[tensor.data_type]] += prod(tensor.dims)
    inputs = (entry.type.tensor_type.elem_type for entry in model.graph.input)
    values = values or Counter(types[kind] for kind in inputs if kind in types)
    return values.most_common(1)[0][0] if values else "fp32"


def signature(path: Path) -> Signature:
    """The inputs and outputs of an ONNX file.

    An axis is one of rows if its name contains "batch" or, where no name does, if it is axis 0 or has the name of an axis 0.

    Raises DataError for a file that is missing or is not an ONNX graph, UnsupportedError for inputs that are not tensors of numbers
    or texts, and for outputs that are neither such tensors nor lists of maps (ZipMap).
    """
    graph = read(path).graph
    weights = {i.name: i.dims for i in graph.initializer}
    entries = [entry for entry in graph.input if entry.name not in weights]
    inputs = _with_rows([_input(entry, graph) for entry in entries])
    if not inputs:
        raise DataError(f"{path}: not an ONNX model that can be timed: it has no input")
    if not graph.output:
        raise DataError(f"{path}: not an ONNX model that can be timed: it has no output")
    for entry in graph.output:
        if not _is_maps(entry):
            _tensor("output", entry)
    return Signature(inputs, tuple(o.name for o in graph.output))


def _is_maps(entry: Any) -> bool:
    """Whether an output is a list of maps from classes to numbers, as ZipMap writes it."""
    return bool(entry.type.WhichOneof("value") == "sequence_type") and bool(
        entry.type.sequence_type.elem_type.WhichOneof("value") == "map_type"
    )


def _with_rows(inputs: list[Input]) -> tuple[Input, ...]:
    """The inputs, whose axes of rows all have "batch" in their names."""
    named = [size for entry in inputs for size in entry.shape if isinstance(size, str)]
    if any("batch" in name.lower() for name in named):
        return tuple(inputs)
    first = {entry.shape[0] for entry in inputs if entry.shape and isinstance(entry.shape[0], str)}

    def rows(shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
        return tuple("batch" if size in first else size for size in shape)

    return tuple(replace(entry, shape=rows(entry.shape)) for entry in inputs)


def _tensor(side: str, entry: Any) -> np.dtype[Any]:
    """The dtype of an input or output. Raises UnsupportedError unless it is a tensor of numbers or texts."""
    import onnx

    kind = entry.type.WhichOneof("value")
    described = f"{side} {entry.name} is a {(kind or 'value').removesuffix('_type')}"
    if kind != "tensor_type":
        hint = "scikit-learn's converter writes tensors with options={'zipmap': False}"
        raise UnsupportedError(f"{described}, but only tensors can be timed", hint)
    if entry.type.tensor_type.elem_type == onnx.TensorProto.STRING:
        return np.dtype(str)
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type))
    except (KeyError, TypeError) as error:
        raise DataError(f"{described} of an unknown type") from error
    if dtype.kind not in "fiub":
        raise UnsupportedError(
            f"{described} of {dtype}, but only tensors of numbers or texts can be timed",
            "cut the graph before or after it",
        )
    return dtype


def _input(entry: Any, graph: Any) -> Input:
    dtype = _tensor("input", entry)
    shape: list[int | str] = []
    for axis, dim in enumerate(entry.type.tensor_type.shape.dim):
        shape.append(dim.dim_value if dim.dim_value > 0 else dim.dim_param or f"axis {axis}")
    words = _words(entry.name, graph) if dtype.kind == "U" else ()
    return Input(entry.name, dtype, tuple(shape), _below(entry.name, graph), words)


# Operators whose output contains the ids of their first input (Concat: of all inputs).
SAME_IDS = {
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
}
SAME_TABLE = {
    "Cast",
    "Identity",
    "DequantizeLinear",
}  # operators whose output is the table of their first input


# Attributes with the texts that an operator knows: OneHotEncoder and CategoryMapper, LabelEncoder, TfIdfVectorizer.
WORDS = ("cats_strings", "keys_strings", "pool_strings")
SAME_WORDS = {
    "Gather",
    "ArrayFeatureExtractor",
    "StringNormalizer",
    "Tokenizer",
}  # whose output has the words of an input


def _words(name: str, graph: Any) -> tuple[str, ...]:
    """The texts that the graph knows for an input; empty if none are listed."""
    names, known = {name}, dict[str, None]()
    for node in graph.node:  # nodes are in topological order
        if not names & set(node.input):
            continue
        known |= {word.decode(): None for a in node.attribute if a.name in WORDS for word in a.strings}
        if node.op_type in SAME_IDS | SAME_WORDS:
            names |= set(node.output)
    return tuple(known)


def _below(name: str, graph: Any) -> int | None:
    """The smallest size of the axes that an input indexes, directly or through nodes that keep its values; None if there is none."""
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    names = {name}
    for node in graph.node:  # nodes are in topological order
        if node.op_type == "Constant" and node.output:
            shapes[node.output[0]] = tuple(node.attribute[0].t.dims) if node.attribute else ()
        if node.op_type in SAME_TABLE and node.input and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
        if node.op_type in SAME_IDS and names & set(
            node.input[:1] if node.op_type != "Concat" else node.input
        ):
            names |= set(node.output)
    bounds = [
        shapes[node.input[0]][axis]
        for node in graph.node
        if node.op_type in ("Gather", "GatherElements") and len(node.input) == 2
        if node.input[1] in names and node.input[0] in shapes
        if -len(shapes[node.input[0]]) <= (axis := _axis(node)) < len(shapes[node.input[0]])
    ]
    return min((size for size in bounds if size > 0), default=None)


def _axis(node: Any) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 0)


def has_tokens(path: Path) -> bool:
    """Whether an input has a dynamic axis for the sequence length (see `sizes`). Raises as `signature` does."""
    return any(sizes(entry, 1, 1) != sizes(entry, 1, 2) for entry in signature(path).inputs)


def sizes(entry: Input, batch: int, seq: int) -> tuple[int, ...]:
    """An input's shape with sizes for its dynamic axes: `batch` for axes of rows (see `signature`), `seq` for others."""
    filled = []
    for size in entry.shape:
        if isinstance(size, str):
            filled.append(batch if "batch" in size.lower() else seq)
        else:
            filled.append(size)
    return tuple(filled)


def sample(entry: Input, batch: int, seq: int, rng: np.random.Generator) -> Array:
    """Random values for an input, with the shape from `sizes`: normally distributed floats, ids below the size of the axis that they
    index, masks of ones, token types of zeros, and texts that the graph knows.

    Raises UsageError for an input of more than MOST_VALUES values.
    """
    shape = sizes(entry, batch, seq)
    if prod(shape) > MOST_VALUES:
        raise UsageError(
            f"input {entry.name} of shape {' x '.join(map(str, shape))} has more than {MOST_VALUES:,} values"
        )
    if entry.dtype.kind == "U":
        return rng.choice(np.array(entry.words or UNKNOWN_WORDS), shape)
    if entry.below and entry.dtype.kind == "f":  # the graph casts them to integers
        return rng.integers(0, entry.below, shape).astype(entry.dtype)
    if entry.dtype.kind == "f":
        return rng.standard_normal(shape).astype(entry.dtype)
    if "mask" in entry.name.lower() or entry.dtype.kind == "b":
        return np.ones(shape, dtype=entry.dtype)
    if "type" in entry.name.lower():
        return np.zeros(shape, dtype=entry.dtype)
    return rng.integers(0, entry.below or 2, shape).astype(entry.dtype)
