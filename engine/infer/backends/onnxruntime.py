"""ONNX Runtime: runs ONNX files, torch modules (exported here), and files of boosted trees."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime as ort

from buzzer.engine.infer.base import Base
from buzzer.engine.infer.onnx.lower import lower
from buzzer.engine.infer.onnx.trees import BOOSTERS, convert
from buzzer.engine.infer.session import Array, Description, Plan, as_arrays, as_feed, check_batch
from buzzer.errors import DataError, UnsupportedError, first_line

# int8 and fp8: a module of buzzer.engine.quant, exported with quantise nodes (the CPU rounds to FP8 and multiplies in FP32).
# int8-dynamic: weights are quantised by channel, inputs at run time.
PRECISIONS = ("fp32", "int8", "fp8", "int8-dynamic")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# Disabled: on CPUs the fused residual and norm takes four times as long as the two operators that it replaces (0.49 and
# 0.12 ms for 128 x 768 on one Zen 4 core, ONNX Runtime 1.32).
SLOWER = ["SkipLayerNormFusion"]


class OnnxRuntime(Base):
    """Runs an InferenceSession with all graph optimisations and the plan's threads."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if PROVIDERS[plan.device] not in ort.get_available_providers():
            raise UnsupportedError(
                f"this ONNX Runtime has no {plan.device} provider", "pip install onnxruntime-gpu"
            )
        if plan.precision != "fp32" and is_trees(plan.model):
            raise UnsupportedError(f"boosted trees do not run in {plan.precision}", "use --precision fp32")
        graph = graph_of(plan)
        if plan.precision == "int8-dynamic":
            graph = lower(graph, dynamic=True)
        if plan.precision == "int8":
            graph = static(plan, graph)
        self._session = open_session(graph, options(plan), plan.device)
        # The exporter drops unused inputs, so the graph may have fewer inputs than a batch.
        self._inputs = {entry.name for entry in self._session.get_inputs()}
        self._weight_bytes = graph.stat().st_size if isinstance(graph, Path) else len(graph)

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        check_batch(self.plan, batch)
        feeds = {name: as_feed(array) for name, array in batch.items() if name in self._inputs}
        return as_arrays(self._session.run(list(self.plan.outputs), feeds), self.plan.outputs)

    def facts(self) -> Description:
        facts = self.plain_facts("onnxruntime", ort.__version__)
        return replace(facts, weight_bytes=self._weight_bytes, denormals="flushed")


def is_trees(model: Any) -> bool:
    """Whether a model is a file of boosted trees, by its suffix."""
    return isinstance(model, Path) and model.suffix in BOOSTERS


def graph_of(plan: Plan) -> Any:
    """The path of an ONNX file, or the serialised graph of a torch module or of boosted trees. Raises UnsupportedError for others."""
    if not isinstance(plan.model, Path):
        if not hasattr(plan.model, "forward"):
            raise UnsupportedError(
                "ONNX Runtime takes torch modules, ONNX files and files of boosted trees",
                "save the trees first: booster.save_model('trees.ubj')",
            )
        # Not at the top: it imports torch, which graphs in files do not need.
        from buzzer.engine.infer.onnx.export import export

        return export(plan)
    return convert(plan) if is_trees(plan.model) else plan.model


def options(plan: Plan) -> Any:
    """SessionOptions: all optimisations, the plan's threads, denormals flushed to zero."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = plan.threads
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.set_denormal_as_zero", "1")
    settings.log_severity_level = 3
    return settings


def static(plan: Plan, graph: Any) -> Any:
    """On the CPU, the graph with its quantise nodes replaced by integer products. A file is not changed."""
    if isinstance(graph, Path) or plan.device != "cpu":
        return graph
    return lower(graph)


def open_session(graph: Any, options: Any, device: str) -> Any:
    """An InferenceSession. Raises DataError for a file that is missing or is not an ONNX graph."""
    source = str(graph) if isinstance(graph, Path) else graph
    try:
        off = SLOWER if device == "cpu" else []
        return ort.InferenceSession(source, options, providers=[PROVIDERS[device]], disabled_optimizers=off)
    except Exception as error:
        if isinstance(graph, Path):
            raise DataError(f"{graph}: not an ONNX model that can be loaded: {first_line(error)}") from error
        raise


def prepare(plan: Plan) -> OnnxRuntime:
    """A session on the plan's torch module, ONNX file or file of boosted trees."""
    return OnnxRuntime(plan)
