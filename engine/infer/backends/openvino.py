"""OpenVINO on the CPU: runs ONNX files, and torch modules (exported here)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from buzzer.engine import device
from buzzer.engine.infer.base import Base
from buzzer.engine.infer.onnx import graphs
from buzzer.engine.infer.session import Array, Description, Plan, as_arrays, check_batch
from buzzer.errors import UnsupportedError, first_line

# int8: a module of buzzer.engine.quant; its float operators run in bf16 if the processor supports it.
PRECISIONS = ("fp32", "bf16", "int8")
HALF = ("bf16", "int8")
FLOATS = ("fp16", "fp64")  # types of an ONNX file's weights that OpenVINO does not compute in
COMPUTES = "openvino computes in FP32 on the CPU: the file's {} is the type of its weights"


class OpenVino(Base):
    """Runs a model compiled for low latency on the plan's threads."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if texts := [name for name, array in plan.example.items() if array.dtype.kind == "U"]:
            raise UnsupportedError(f"OpenVINO takes no texts, which input {texts[0]} has", "use onnxruntime")
        bf16 = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if plan.precision == "bf16" and not bf16:
            raise UnsupportedError("this processor has no bfloat16 instructions", "use --precision fp32")
        # With it, the kernels for AVX2 compute wrong values: those of 2026.4.1 were off by up to 0.05.
        self._flushes = device.has_avx512()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": plan.threads,
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 and plan.precision in HALF else "f32",
            "CPU_DENORMALS_OPTIMIZATION": self._flushes,
        }
        self._model = compiled(plan, settings)
        self._request = self._model.create_infer_request()
        # A port that only a cast reads also has the cast's name.
        self._inputs = [name for port in self._model.inputs for name in port.names if name in plan.example]

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        check_batch(self.plan, batch)
        outputs = self._request.infer({name: batch[name] for name in self._inputs}, share_inputs=True)
        copies = [np.array(outputs[port], copy=True) for port in self._model.outputs]
        return as_arrays(copies, self.plan.outputs)

    def poison(self) -> None:
        """Fill the request's output tensors, which it reuses in each run, with NaN."""
        for port in self._model.outputs:
            data = self._request.get_tensor(port).data
            if data.dtype.kind == "f":
                data.fill(np.nan)

    def close(self) -> None:
        del self._request, self._model

    def facts(self) -> Description:
        return replace(
            self.plain_facts("openvino", openvino.__version__.split("-")[0]),
            denormals="flushed" if self._flushes else "kept",
            kernels=kernels(self._model),
            notes=(COMPUTES.format(self.plan.precision),) if self.plan.precision in FLOATS else (),
        )


def kernels(model: Any) -> int:
    """The number of operators of the compiled graph, without inputs, outputs and constants."""
    kinds = (op.get_rt_info()["layerType"].astype(str) for op in model.get_runtime_model().get_ops())
    return sum(kind not in ("Input", "Output", "Const") for kind in kinds)


@cache
def core() -> Any:
    """The process's only `Core`. Each one sets a stack for signal handlers, and with two of them that stack can be one that is
    freed: the next signal then ends the process (2026.4.1)."""
    return openvino.Core()


def compiled(plan: Plan, settings: Mapping[str, object]) -> Any:
    """The plan's model, compiled for the CPU with these properties.

    Raises DataError for a file that is missing or is not an ONNX graph, UnsupportedError for one that OpenVINO cannot compile.
    """
    if not isinstance(plan.model, Path):
        from buzzer.engine.infer.onnx.export import export

        return core().compile_model(core().read_model(export(plan)), "CPU", settings)
    graphs.read(plan.model)
    try:
        model = core().read_model(plan.model)
        if not any(plan.dynamic.values()):
            inputs = {port.any_name for port in model.inputs}
            model.reshape({name: list(a.shape) for name, a in plan.example.items() if name in inputs})
        return core().compile_model(model, "CPU", settings)
    except RuntimeError as error:
        # The first lines of the message are locations in OpenVINO's source.
        reason = first_line("\n".join(reversed(str(error).splitlines())))
        raise UnsupportedError(f"OpenVINO cannot compile {plan.model.name}: {reason}") from error


def prepare(plan: Plan) -> OpenVino:
    """A session on the plan's torch module or ONNX file."""
    return OpenVino(plan)
