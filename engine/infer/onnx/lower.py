"""Replaces matrix products with constants by ONNX Runtime's integer product. It replaces either the products between the quantise
nodes that buzzer.engine.quant exports, or float products, whose inputs are then quantised at run time.

ONNX Runtime's own passes do not do this well. With fixed sizes they fuse MatMul and Add into a float Gemm and dequantise every
weight at run time. quantize_dynamic takes minutes for BERT-Large, because it quantises one channel after the other. This module also
merges products that share an input (query, key and value) into one.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.infer.onnx import graphs
from buzzer.engine.infer.onnx.graphs import read
from buzzer.engine.infer.session import Array
from buzzer.errors import UnsupportedError

DOMAIN = "com.microsoft"  # MatMulIntegerToFloat: onnxruntime/docs/ContribOperators.md
LEAST_OPSET = 11  # the first opset with DynamicQuantizeLinear
LIMIT, TINY = 127, 1e-12  # largest int8 weight; least scale, for columns of zeros


def lower(source: bytes | Path, dynamic: bool = False) -> bytes:
    """A graph with integer products in place of chains of QuantizeLinear, DequantizeLinear, MatMul (and Add).

    source: the serialised graph, or the path of a file.
    dynamic: instead, replace each float32 MatMul (and Add) or Gemm whose other operand is a constant. Weights become int8,
        symmetric, with one scale per column. Inputs become uint8, with their own scale and zero point in each run.

    Raises UnsupportedError with `dynamic` if the file's operators are too old, or if nothing would be quantised.
    """
    import onnx

    model = read(source, weights=True) if isinstance(source, Path) else onnx.load_from_string(source)
    versions = {opset.domain: opset.version for opset in model.opset_import}
    if dynamic and versions.get("", LEAST_OPSET) < LEAST_OPSET:
        message = f"the file uses opset {versions['']}, but int8-dynamic needs {LEAST_OPSET}"
        raise UnsupportedError(message, "convert it with onnx.version_converter")
    lowered = Lowering(model.graph, dynamic)
    lowered.run()
    if dynamic and not lowered.groups:
        reason = "it has no float32 matrix product with a constant"
        raise UnsupportedError(f"int8-dynamic cannot quantise this model: {reason}", "use another precision")
    if lowered.groups and DOMAIN not in versions:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return bytes(model.SerializeToString())


class Lowering:
    """The lowering of one graph. It changes the graph in place."""

    def __init__(self, graph: Any, dynamic: bool) -> None:
        from onnx import numpy_helper

        self.graph, self.dynamic = graph, dynamic
        self.producers = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for name in read_by(node):
                self.users[name].append(node)
        self.outputs = {o.name for o in graph.output}
        self.initializers = {i.name: i for i in graph.initializer}
        self.array = numpy_helper.to_array
        self.groups: dict[tuple[Any, ...], list[Product]] = defaultdict(list)

    def run(self) -> None:
        """Find the products, group those that share an input, and replace each group by integer nodes."""
        for node in self.graph.node:
            product = self.float_product(node) if self.dynamic else self.product(node)
            if product is not None:
                self.groups[product.key].append(product)
        replaced = {id(node) for group in self.groups.values() for each in group for node in each.nodes}
        first = {id(group[0].nodes[0]): (number, group) for number, group in enumerate(self.groups.values())}
        nodes = []
        for node in self.graph.node:
            if id(node) in first:
                nodes += self.integer(*first[id(node)])
            if id(node) not in replaced:
                nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(used(nodes, self.outputs))
        self.tidy()

    def constant(self, name: str) -> Array | None:
        """The value of a constant, also behind Identity nodes; None if no constant has this name."""
        while name in self.producers and self.producers[name].op_type == "Identity":
            name = self.producers[name].input[0]
        if name in self.initializers:
            return np.asarray(self.array(self.initializers[name]))
        node = self.producers.get(name)
        if node is not None and node.op_type == "Constant":
            return np.asarray(self.array(node.attribute[0].t))
        return None

    def product(self, node: Any) -> "Product | None":
        """The product of a MatMul of a dequantised input with a dequantised constant; None for any other node."""
        if node.op_type != "MatMul":
            return None
        left, right = (self.producers.get(name) for name in node.input)
        if left is None or right is None or {left.op_type, right.op_type} != {"DequantizeLinear"}:
            return None
        weight, quantise = self.constant(right.input[0]), self.producers.get(left.input[0])
        if weight is None or weight.dtype != np.int8:
            return None
        if quantise is None or quantise.op_type != "QuantizeLinear":
            return None
        scale, zero, weight_scale = map(self.constant, (left.input[1], left.input[2], right.input[1]))
        if scale is None or zero is None or weight_scale is None or zero.dtype != np.uint8 or scale.ndim:
            return None
        bias, last, nodes = self.bias(node, weight.shape[1])
        return Product(quantise.input[0], scale, zero, weight, weight_scale, bias, last, nodes)

    def float_product(self, node: Any) -> "Product | None":
        """The product with int8 weights for a float32 MatMul or plain Gemm whose right operand is constant; None for any other node."""
        if node.op_type not in ("MatMul", "Gemm"):
            return None
        options = {a.name: a.f if a.name in ("alpha", "beta") else a.i for a in node.attribute}
        if options.get("transA", 0) or options.get("alpha", 1) != 1 or options.get("beta", 1) != 1:
            return None
        weight = self.constant(node.input[1])
        if weight is None or weight.dtype != np.float32 or weight.ndim != 2:
            return None
        weight = weight.T if options.get("transB", 0) else weight
        bias, last, nodes = self.bias(node, weight.shape[1])
        if len(node.input) == 3:
            bias, last, nodes = self.constant(node.input[2]), node.output[0], [node]
            if bias is None or bias.shape != (weight.shape[1],):
                return None
        scale = np.maximum(np.abs(weight).max(axis=0) / LIMIT, TINY).astype(np.float32)
        integers = np.rint(weight / scale).clip(-LIMIT, LIMIT).astype(np.int8)
        return Product(node.input[0], None, None, integers, scale, bias, last, nodes)

    def bias(self, node: Any, width: int) -> tuple[Array | None, str, list[Any]]:
        """The bias that an Add adds to a product (None if there is no such Add), the name of the result, and the nodes to replace."""
        name = node.output[0]
        users = self.users[name]
        if len(users) == 1 and users[0].op_type == "Add" and name not in self.outputs:
            other = next((i for i in users[0].input if i != name), name)
            bias = self.constant(other)
            if bias is not None and bias.shape == (width,):
                return bias, users[0].output[0], [node, users[0]]
        return None, name, [node]

    def integer(self, number: int, group: "list[Product]") -> list[Any]:
        """The nodes of a group: one quantisation, one product, and a split if the group has several products."""
        from onnx import helper

        first, name = group[0], f"buzzer.{number}"
        widths = [p.weight.shape[1] for p in group]
        zeros = [np.zeros(w, dtype=np.float32) for w in widths]
        values = {
            "weight": np.concatenate([p.weight for p in group], axis=1),
            "weight_scale": np.concatenate([p.weight_scale for p in group]),
            "bias": np.concatenate(
                [b if p.bias is None else p.bias for p, b in zip(group, zeros, strict=True)]
            ),
        }
        if first.scale is not None and first.zero is not None:
            values |= {"scale": first.scale, "zero": first.zero}
        at = {key: f"{name}.{key}" for key in ("scale", "zero")} | self.put(name, values)
        whole = first.output if len(group) == 1 else f"{name}.out"
        inputs = [f"{name}.x", at["weight"], at["scale"], at["weight_scale"], at["zero"], ""]
        quantise = ("QuantizeLinear", [first.x, at["scale"], at["zero"]], [f"{name}.x"])
        if first.scale is None:
            quantise = ("DynamicQuantizeLinear", [first.x], [f"{name}.x", at["scale"], at["zero"]])
        nodes = [
            helper.make_node(*quantise),
            helper.make_node("MatMulIntegerToFloat", [*inputs, at["bias"]], [whole], domain=DOMAIN),
        ]
        if len(group) > 1:
            sizes = self.put(name, {"widths": np.array(widths, dtype=np.int64)})["widths"]
            nodes.append(helper.make_node("Split", [whole, sizes], [p.output for p in group], axis=-1))
        return nodes

    def put(self, name: str, values: Mapping[str, Array]) -> dict[str, str]:
        """Add constants to the graph. Returns their names."""
        from onnx import numpy_helper

        for key, value in values.items():
            self.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(value), f"{name}.{key}")
            )
        return {key: f"{name}.{key}" for key in values}

    def tidy(self) -> None:
        """Drop unused constants."""
        used_names = graphs.names_read(self.graph) | self.outputs
        kept = [i for i in self.graph.initializer if i.name in used_names]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


class Product:
    """A quantised product: x, quantised by (scale, zero), times weight int8 [in, out] with scales weight_scale [out], plus bias [out].

    scale and zero are None if x is quantised from its range at run time.  output: name of the result.  nodes: the nodes that the
    product replaces.
    """

    def __init__(
        self,
        x: str,
        scale: Array | None,
        zero: Array | None,
        weight: Array,
        weight_scale: Array,
        bias: Array | None,
        output: str,
        nodes: list[Any],
    ) -> None:
        self.x, self.scale, self.zero = x, scale, zero
        self.weight, self.weight_scale, self.bias = weight, weight_scale, bias
        self.output, self.nodes = output, nodes
        self.key = (x, *(None if v is None else float(v) for v in (scale, zero)), weight.shape[0])


def used(nodes: list[Any], outputs: set[str]) -> list[Any]:
    """The nodes whose results are used, in their order. outputs: the names of the graph's outputs."""
    used_names, kept = set(outputs), []
    for node in reversed(nodes):
        if used_names & set(node.output):
            kept.append(node)
            used_names.update(read_by(node))
    return kept[::-1]


def read_by(node: Any) -> Iterator[str]:
    """The names of the values that a node and the graphs inside it (of a Loop, for example) read."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for each in graphs.nodes(inner):
                yield from each.input
