"""Networks that a fit has saved as a graph too, so that a prediction need not import torch, which takes seconds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buzzer.engine.infer.session import Array, Plan


@dataclass(frozen=True)
class Stored:
    """A trained network in two forms: `infer.prepare` reads the graph for backends that run ONNX files in fp32, and loads the module
    for all others."""

    graph: Path  # the ONNX file that `store` wrote
    load: Callable[[], Any]  # the torch module


def store(
    module: Any,
    graph: Path,
    example: Mapping[str, Array],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> None:
    """Write the ONNX graph of a torch module. The other arguments are those of `infer.prepare`."""
    from buzzer.engine.infer.onnx.export import export

    plan = Plan(module, dict(example), tuple(outputs), open_axes(example, dynamic), "fp32", "cpu", 1)
    graph.write_bytes(export(plan))


def open_axes(
    example: Mapping[str, Array], dynamic: Mapping[str, Mapping[int, str]] | None
) -> dict[str, dict[int, str]]:
    """The axes of each input that may change: those of `dynamic`, by default axis 0 of every input."""
    return {name: dict((dynamic or {}).get(name, {0: "batch"})) for name in example}
