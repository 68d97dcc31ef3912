"""The least work of a run, as FLOPs and bytes. They are counted from the model, not from a backend's kernels.

The least time of a run is max(bytes / bandwidth, FLOPs / peak), the roofline of Williams et al. (CACM 2009).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.infer.session import Array

WEIGHT_BYTES = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "int8-dynamic": 1, "fp8": 1}


@dataclass(frozen=True)
class Cost:
    """The least work of a run."""

    flops: int  # a multiply-add counts as two
    weights: int  # number of weights without embedding tables; each run reads all of them
    rest: int  # bytes of inputs, outputs, and embedding rows that are read

    def bytes_moved(self, precision: str) -> int:
        """The least number of bytes to move. Activations are not counted, because they could stay in a cache."""
        return self.weights * WEIGHT_BYTES[precision] + self.rest


def cost_of(model: Any, batch: Mapping[str, Array]) -> Cost | None:
    """The cost of a run on a batch; None for models whose operations are not counted (trees).

    model: a torch module, which is run once, or a path; only ONNX files are counted.
    """
    if isinstance(model, Path):
        return of_graph(model, batch) if model.suffix == ".onnx" else None
    import torch

    return of_module(model, batch) if isinstance(model, torch.nn.Module) else None


def of_module(module: Any, batch: Mapping[str, Array]) -> Cost:
    """The cost of a torch module: the FLOPs of `counted_run`, and its weights. Runs the module once."""
    rows = [0]
    handles = [m.register_forward_hook(_rows(rows)) for m in module.modules() if _is_table(m)]
    try:
        flops, inputs, result = counted_run(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    outputs = result if isinstance(result, tuple | list) else (result,)
    tables = {id(p) for m in module.modules() if _is_table(m) for p in m.parameters()}
    dense = sum(p.numel() for p in module.parameters() if id(p) not in tables)
    moved = sum(t.numel() * t.element_size() for t in (*inputs, *outputs))
    return Cost(flops, dense, rows[0] + moved)


def row_flops(module: Any, row: Mapping[str, Array]) -> int:
    """The FLOPs of `counted_run` that each further row adds to a run. What a run computes once for all rows does not count.

    module: a torch module; on the device `meta` nothing is computed.  row: the inputs of one row, [1, ...] each.
    """
    # From two rows on: for one row torch may choose other operations.
    two, three = (
        counted_run(module, {name: np.repeat(x, n, axis=0) for name, x in row.items()})[0] for n in (2, 3)
    )
    return three - two


def counted_run(module: Any, batch: Mapping[str, Array]) -> tuple[int, list[Any], Any]:
    """Run a torch module once, on the device of its weights. Returns its FLOPs, its inputs and its outputs.

    The FLOPs are those of matrix products, convolutions, attention and recurrent layers, by torch's counter; a multiply-add counts as two.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    inputs = [torch.as_tensor(array, device=device) for array in batch.values()]
    # torch does not count this operation by default.
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    counter = FlopCounterMode(display=False, custom_mapping=on_cpu)
    recurrent = Recurrent(counter)
    handles = [
        handle
        for m in module.modules()
        if isinstance(m, torch.nn.RNNBase)
        for handle in (m.register_forward_pre_hook(recurrent.begin), m.register_forward_hook(recurrent.end))
    ]
    try:
        with torch.no_grad(), counter:
            result = module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return counter.get_total_flops() + recurrent.uncounted, inputs, result


class Recurrent:
    """Hooks that count recurrent layers: each weight matrix once per step and row. torch counts some of their operations, by device."""

    def __init__(self, counter: Any) -> None:
        self.counter, self.before, self.uncounted = counter, 0, 0

    def begin(self, module: Any, inputs: Any) -> None:
        """Note what torch has counted before the layer."""
        self.before = self.counter.get_total_flops()

    def end(self, module: Any, inputs: Any, output: Any) -> None:
        """Add what torch has not counted of the layer."""
        matrices = sum(p.numel() for p in module.parameters() if p.ndim == 2)
        counted = self.counter.get_total_flops() - self.before
        self.uncounted += 2 * matrices * prod(inputs[0].shape[:2]) - counted


def _attention(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    from torch.utils.flop_counter import sdpa_flop_count

    return sdpa_flop_count(q, k, v)


def _is_table(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag)


def _rows(total: list[int]) -> Any:
    """A hook that adds up the bytes of the embedding rows that are read."""

    def hook(module: Any, inputs: Any, output: Any) -> None:
        total[0] += inputs[0].numel() * module.embedding_dim * 4

    return hook


def of_graph(path: Path, batch: Mapping[str, Array]) -> Cost | None:
    """The cost from ONNX shape inference with the batch's sizes; None if the shape of a matrix product remains unknown."""
    from onnx import shape_inference

    from buzzer.engine.infer.onnx import graphs

    model = graphs.read(path)
    for entry in model.graph.input:
        for dim, size in zip(
            entry.type.tensor_type.shape.dim,
            batch[entry.name].shape if entry.name in batch else (),
            strict=False,
        ):
            dim.dim_value = size
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError):  # a runtime may still run the model
        return None
    shapes = _shapes(inferred.graph)
    tables = {n.input[0] for n in model.graph.node if n.op_type == "Gather" and n.input}
    weights = {i.name: prod(i.dims) for i in model.graph.initializer}
    flops = [_node_flops(node, shapes) for node in model.graph.node]
    outputs = [shapes.get(o.name) for o in model.graph.output]
    if None in flops or None in outputs:
        return None
    rows = sum(
        4 * prod(shapes.get(n.output[0]) or ())
        for n in model.graph.node
        if n.input and n.input[0] in weights and n.op_type == "Gather"
    )
    moved = sum(a.nbytes for a in batch.values()) + sum(4 * prod(s) for s in outputs if s is not None)
    dense = sum(size for name, size in weights.items() if name not in tables)
    return Cost(sum(f for f in flops if f is not None), dense, rows + moved)


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """The completely known shapes, by tensor name."""
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    for entry in (*graph.input, *graph.value_info, *graph.output):
        dims = entry.type.tensor_type.shape.dim
        if entry.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[entry.name] = tuple(d.dim_value for d in dims)
    return shapes


RECURRENT = ("GRU", "LSTM", "RNN")
PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "Conv", "ConvInteger", *RECURRENT)


def _node_flops(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """FLOPs of a node: 0 if it is not a matrix product, None if a shape is unknown."""
    if node.op_type not in PRODUCTS:
        return 0
    at = 3 if node.op_type == "QLinearMatMul" else 1
    if len(node.input) <= at or not node.output:
        return None
    sides = [shapes.get(name) for name in (node.input[0], node.input[at], node.output[0])]
    left, right, out = sides
    if not left or not right:
        return None
    if node.op_type in RECURRENT:  # input [steps, batch, size], W [directions, gates, size], and R
        hidden = shapes.get(node.input[2]) if len(node.input) > 2 else None
        return None if hidden is None else 2 * prod(left[:2]) * (prod(right) + prod(hidden))
    if out is None:
        return None
    if node.op_type == "Gemm":
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return 2 * prod(out) * right[-1 if transposed else 0]
    inner = prod(right[1:]) if node.op_type.startswith("Conv") else left[-1]
    return 2 * prod(out) * inner
