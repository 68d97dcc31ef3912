"""ONNX Runtime on a GPU, with inputs and outputs in torch's device memory. If all axes are fixed, a run replays ONNX Runtime's own
CUDA graph on static buffers."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from onnxruntime.capi import onnxruntime_pybind11_state
from torch import Tensor

from buzzer.engine.device import require_torch_cuda
from buzzer.engine.infer.base import Base
from buzzer.engine.infer.cuda_graphs import WARMUPS
from buzzer.engine.infer.onnx.export import export
from buzzer.engine.infer.session import Array, Description, Plan, as_arrays, check_batch
from buzzer.errors import DataError, UnsupportedError, first_line

PRECISIONS = ("fp32", "fp16")
PLACE = "cuda"  # ONNX Runtime's name of the device of bound tensors
TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}
# ONNX Runtime's errors have no common class.
ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(
        x
        for x in vars(onnxruntime_pybind11_state).values()
        if isinstance(x, type) and issubclass(x, Exception)
    ),
)
Providers = Sequence[tuple[str, dict[str, str]]]


@dataclass(frozen=True)
class Provider:
    """An execution provider. options: its options.  graph: options with which it captures a CUDA graph.  after: providers of the operators
    that it does not take."""

    name: str
    options: dict[str, str]
    graph: dict[str, str]
    after: tuple[str, ...] = ()

    def list(self, stream: int, graph: bool) -> Providers:
        """The providers in order, on a CUDA stream."""
        own = self.options | (self.graph if graph else {})
        on_stream = {"user_compute_stream": str(stream)}
        return [(self.name, own | on_stream), *((name, on_stream) for name in self.after)]


@dataclass
class Bound:
    """A batch on the device: its tensors, and where ONNX Runtime reads and writes. outputs: None if ONNX Runtime allocates them."""

    binding: Any
    inputs: list[Tensor]
    outputs: list[Tensor] | None


class BoundSession(Base):
    """Runs an InferenceSession on device memory. Its run has the stages of `session.Staging`."""

    def __init__(self, plan: Plan, backend: str, provider: Provider) -> None:
        super().__init__(plan)
        require_torch_cuda()
        if provider.name not in ort.get_available_providers():
            raise UnsupportedError(f"this ONNX Runtime has no {provider.name}", "pip install onnxruntime-gpu")
        self._backend, self._stream = backend, torch.cuda.Stream()
        self._source = source_of(plan)
        self._notes: tuple[str, ...] = ()
        self._static: Bound | None = None
        # ONNX Runtime then leaves it to the caller to wait for the device.
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if any(plan.dynamic.values()):
            self._without_graph(provider, "its axes are not fixed")
        else:
            self._with_graph(provider)

    def _with_graph(self, provider: Provider) -> None:
        """Open the session with a graph if it can be captured, else without."""
        try:
            self._session = self._open(provider, graph=True)
            self._static = self._bind(self._sent(self.plan.example), self._buffers())
            for _ in range(WARMUPS):  # ONNX Runtime captures during these
                self.replay(self._static)
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            raise
        except ERRORS as error:
            self._static = None
            self._without_graph(provider, f"it could not be captured ({first_line(error)})")

    def _without_graph(self, provider: Provider, reason: str) -> None:
        try:
            self._session = self._open(provider, graph=False)
        except ERRORS as error:
            if isinstance(self._source, Path):
                raise DataError(f"{self._source}: cannot be loaded: {first_line(error)}") from error
            raise
        name, effect = f"{self._backend} {self.plan.precision}", "its device time includes kernel launches"
        self._notes = (f"{name} ran without a CUDA graph, because {reason}: {effect}",)

    def _open(self, provider: Provider, graph: bool) -> Any:
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        providers = provider.list(self._stream.cuda_stream, graph)
        source = str(self._source) if isinstance(self._source, Path) else self._source
        session = ort.InferenceSession(source, settings, providers=providers)
        if (
            session.get_providers()[0] != provider.name
        ):  # ONNX Runtime continues without a provider that fails
            raise UnsupportedError(
                f"{provider.name} could not be started", "see the messages of ONNX Runtime"
            )
        return session

    def _sent(self, batch: Mapping[str, Array]) -> list[Tensor]:
        """The inputs that the graph reads, on the device. The exporter drops unused inputs."""
        return [self._send(batch[entry.name], entry.type) for entry in self._session.get_inputs()]

    def _send(self, array: Array, kind: str) -> Tensor:
        """An array on the device, floats in the graph's type."""
        tensor = torch.as_tensor(array, device="cuda")
        return tensor.to(TYPES[kind]) if tensor.is_floating_point() else tensor

    def _buffers(self) -> list[Tensor]:
        """Buffers of the outputs, whose sizes are fixed."""
        return [torch.empty(tuple(x.shape), dtype=TYPES[x.type], device="cuda") for x in self._ordered()]

    def _ordered(self) -> list[Any]:
        entries = {entry.name: entry for entry in self._session.get_outputs()}
        return [entries[name] for name in self.plan.outputs]

    def _bind(self, inputs: list[Tensor], outputs: list[Tensor] | None) -> Bound:
        binding = self._session.io_binding()
        for entry, tensor in zip(self._session.get_inputs(), inputs, strict=True):
            binding.bind_input(
                entry.name, PLACE, 0, numpy_type(tensor), tuple(tensor.shape), tensor.data_ptr()
            )
        for i, name in enumerate(self.plan.outputs):
            if outputs is None:
                binding.bind_output(name, PLACE)
            else:
                at = outputs[i]
                binding.bind_output(name, PLACE, 0, numpy_type(at), tuple(at.shape), at.data_ptr())
        return Bound(binding, inputs, outputs)

    @torch.inference_mode()
    def stage(self, batch: Mapping[str, Array]) -> Bound:
        """Copy a batch to the device, into the graph's buffers if there is a graph."""
        check_batch(self.plan, batch)
        inputs = self._sent(batch)
        if self._static is None:
            return self._bind(inputs, None)
        for buffer, tensor in zip(self._static.inputs, inputs, strict=True):
            buffer.copy_(tensor)
        return self._static

    def replay(self, staged: Bound) -> None:
        """Start the work on a staged batch; does not wait for it. It runs on the session's stream, between two points of torch's."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        self._session.run_with_iobinding(staged.binding, self._run_options)
        current.wait_stream(self._stream)

    def fetch(self, staged: Bound) -> dict[str, Array]:
        """Wait for the outputs and copy them to the host, floats as fp32."""
        torch.cuda.synchronize()
        if staged.outputs is None:
            outputs = [torch.from_numpy(x) for x in staged.binding.copy_outputs_to_cpu()]
        else:
            outputs = [x.cpu() for x in staged.outputs]
        floats = [(x.float() if x.is_floating_point() else x).numpy().copy() for x in outputs]
        return as_arrays(floats, self.plan.outputs)

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        staged = self.stage(batch)
        self.replay(staged)
        return self.fetch(staged)

    @torch.inference_mode()
    def poison(self) -> None:
        for output in (self._static and self._static.outputs) or ():
            if output.is_floating_point():
                output.fill_(torch.nan)

    def facts(self) -> Description:
        facts = self.plain_facts(self._backend, ort.__version__)
        size = self._source.stat().st_size if isinstance(self._source, Path) else len(self._source)
        return replace(facts, weight_bytes=size, graph=self._static is not None, notes=self._notes)


def numpy_type(tensor: Tensor) -> Any:
    """The NumPy type of a tensor's values."""
    return torch.empty(0, dtype=tensor.dtype).numpy().dtype.type


def source_of(plan: Plan) -> Any:
    """The path of an ONNX file, or the serialised graph of a torch module, in half precision for fp16."""
    if isinstance(plan.model, Path):
        if plan.model.suffix != ".onnx":
            raise UnsupportedError("boosted trees do not run on this backend", "use --backend nvforest")
        return plan.model
    if plan.precision != "fp16":
        return export(plan)
    # The exported graph takes fp16 floats; `_send` converts them.
    halves = {k: x.astype("float16") if x.dtype.kind == "f" else x for k, x in plan.example.items()}
    return export(replace(plan, model=copy.deepcopy(plan.model).half(), example=halves))
