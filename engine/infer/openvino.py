"""OpenVINO on the CPU, on an ONNX file or on a torch module exported here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.infer.onnx_graph import export
from buzzer.engine.infer.session import Array, Base, Description, Plan, as_arrays, check_batch
from buzzer.errors import DataError, UnsupportedError

try:
    import openvino
except ImportError as error:
    raise UnsupportedError("OpenVINO is not installed", "pip install 'buzzer[cpu-fast]'") from error

# int8: the quantise nodes that buzzer.engine.quant put into the module; what is left of it runs in
# bf16 where the processor has that.
PRECISIONS = ("fp32", "bf16", "int8")


class OpenVino(Base):
    """A compiled model for the lowest latency on the plan's threads."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if plan.device != "cpu":
            raise UnsupportedError("the openvino backend runs on the CPU only", "use --device cpu")
        core = openvino.Core()
        bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if plan.precision == "bf16" and not bf16:
            raise UnsupportedError("this processor has no bfloat16 instructions", "use --precision fp32")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": plan.threads,
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 and plan.precision != "fp32" else "f32",
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        self._model = core.compile_model(read(core, plan), "CPU", settings)
        self._request = self._model.create_infer_request()
        self._taken = [port.any_name for port in self._model.inputs]

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        check_batch(self.plan, batch)
        found = self._request.infer({name: batch[name] for name in self._taken}, share_inputs=True)
        copies = [np.array(found[port], copy=True) for port in self._model.outputs]
        return as_arrays(copies, self.plan.outputs)

    def poison(self) -> None:
        """The request's own output tensors are used again in each run."""
        for port in self._model.outputs:
            data = self._request.get_tensor(port).data
            if data.dtype.kind == "f":
                data.fill(np.nan)

    def close(self) -> None:
        del self._request, self._model

    def facts(self) -> Description:
        module = self.plan.model
        return Description(
            backend="openvino",
            version=openvino.__version__.split("-")[0],
            precision=self.plan.precision,
            device=self.plan.device,
            threads=self.plan.threads,
            parameters=None if isinstance(module, Path) else sum(w.numel() for w in module.parameters()),
            weight_bytes=None,
            denormals="flushed",
            kernels=kernels(self._model),
        )


def kernels(model: Any) -> int:
    """Operators of the compiled graph, less its ends and its constants."""
    kinds = (op.get_rt_info()["layerType"].astype(str) for op in model.get_runtime_model().get_ops())
    return sum(kind not in ("Input", "Output", "Const") for kind in kinds)


def read(core: Any, plan: Plan) -> Any:
    """The plan's model as OpenVINO reads it. Raises DataError for a file that is missing or no ONNX graph."""
    if not isinstance(plan.model, Path):
        return core.read_model(export(plan))
    try:
        model = core.read_model(plan.model)
        if not any(plan.dynamic.values()):
            taken = {port.any_name for port in model.inputs}
            model.reshape({name: list(a.shape) for name, a in plan.example.items() if name in taken})
        return model
    except RuntimeError as error:
        raise DataError(f"{plan.model}: not an ONNX model that can be loaded: {error}") from error


def prepare(plan: Plan) -> OpenVino:
    return OpenVino(plan)
