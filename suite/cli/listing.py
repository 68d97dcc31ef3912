"""`buzzer list`: tasks, engines, backends, budgets and data sets."""

import json
from typing import Annotated, Any

import typer

from buzzer.configs import load_yaml
from buzzer.suite import registry
from buzzer.suite.report.console import show
from buzzer.suite.report.table import table


def main(as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False) -> None:
    """List what can be run; imports no model."""
    everything = content()
    if as_json:
        print(json.dumps(everything))
        return
    for title, entries in everything.items():
        lines = [(name, what if isinstance(what, str) else what["summary"]) for name, what in entries.items()]
        show(table(title, ("name", "what"), lines))


def content() -> dict[str, dict[str, Any]]:
    """Everything by kind and name."""
    return {
        "tasks": {name: task.model_dump() for name, task in registry.tasks().items()},
        "engines": dict(ENGINES),
        "backends": {name: BACKENDS.get(name, "") for name in registry.backends()},
        "models of bench": {name: model.summary for name, model in registry.models().items()},
        "budgets": {
            n: f"{b['limits'] or 'whole machine'}: {b['why']}" for n, b in load_yaml("budgets.yaml").items()
        },
        "data sets": {name: first_line(registry.card(name)) for name in registry.datasets()},
    }


ENGINES = {
    "pandas": "eager frames on the CPU, as competitors write them",
    "cudf": "the same text on one GPU",
    "polars": "lazy plans on the CPU, the tuned baseline",
    "polars-gpu": "the same plans on cuDF (cudf-polars)",
}
BACKENDS = {
    "torch_eager": "PyTorch as it is: the reference",
    "torch_compile": "PyTorch through its compiler",
    "onnxruntime": "ONNX Runtime on the exported graph",
    "openvino": "OpenVINO on the exported graph",
    "tensorrt": "TensorRT on the exported graph, strongly typed",
    "fused": "our Triton kernels, encoders on a GPU",
    "xgboost": "boosted trees by XGBoost",
    "nvforest": "boosted trees by RAPIDS nvForest, on a GPU or the CPU",
    "tl2cgen": "boosted trees compiled to machine code",
}


def first_line(card: str) -> str:
    return card.lstrip("# \n").split("\n", 1)[0]
