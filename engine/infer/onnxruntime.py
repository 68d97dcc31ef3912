"""ONNX Runtime, on an ONNX file or on a torch module exported here."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from buzzer.engine.infer.session import Array, Base, Description, Plan, as_arrays, check_batch
from buzzer.errors import DataError, UnsupportedError

try:
    import onnxruntime as ort
except ImportError as error:
    raise UnsupportedError("ONNX Runtime is not installed", "pip install onnxruntime") from error

PRECISIONS = ("fp32",)
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


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
    axes = {name: dict(axes) for name, axes in plan.dynamic.items()}
    batch = next(iter(plan.dynamic.values()))[0]
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
            dynamic_axes=axes | {name: {0: batch} for name in plan.outputs},
            opset_version=19 if quant.precision_of(plan.model) == "fp8" else 17,  # float8 came with 19
            dynamo=False,
        )
    return buffer.getvalue()


class OnnxRuntime(Base):
    """An InferenceSession with all graph optimisations and the plan's threads."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if PROVIDERS[plan.device] not in ort.get_available_providers():
            raise UnsupportedError(
                f"this ONNX Runtime has no {plan.device} provider", "pip install onnxruntime-gpu"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = plan.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        options.log_severity_level = 3
        graph: Any = plan.model if isinstance(plan.model, Path) else export(plan)
        self._session = open_session(graph, options, PROVIDERS[plan.device])
        self._weight_bytes = graph.stat().st_size if isinstance(graph, Path) else len(graph)

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        check_batch(self.plan, batch)
        taken = {i.name for i in self._session.get_inputs()}  # the exporter drops inputs that do not matter
        feeds = {name: array for name, array in batch.items() if name in taken}
        return as_arrays(self._session.run(list(self.plan.outputs), feeds), self.plan.outputs)

    def describe(self) -> Description:
        module = self.plan.model
        return Description(
            backend="onnxruntime",
            version=ort.__version__,
            precision=self.plan.precision,
            device=self.plan.device,
            threads=self.plan.threads,
            parameters=None if isinstance(module, Path) else sum(w.numel() for w in module.parameters()),
            weight_bytes=self._weight_bytes,
        )


def open_session(graph: Any, options: Any, provider: str) -> Any:
    """An ort.InferenceSession. Raises DataError for a file that is missing or no ONNX graph."""
    source = str(graph) if isinstance(graph, Path) else graph
    try:
        return ort.InferenceSession(source, options, providers=[provider])
    except Exception as error:
        if isinstance(graph, Path):
            raise DataError(f"{graph}: not an ONNX model that can be loaded: {error}") from error
        raise


def prepare(plan: Plan) -> OnnxRuntime:
    return OnnxRuntime(plan)
