"""A session that calls a torch module. Shared by torch_eager and torch_compile."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from buzzer.engine.device import require_torch_cuda
from buzzer.engine.infer.cuda_graphs import Replayed, Staged, graph_or_note
from buzzer.engine.infer.session import Array, Description, Plan, check_batch
from buzzer.errors import UnsupportedError, first_line

MIXED = ("dtype", "scalar type")  # substrings of torch's errors about operands of different types


class TorchSession(Replayed):
    """Runs the module in evaluation mode; outputs are fp32.

    On the CPU, bf16 uses autocast. On a GPU the module is converted once, and if all axes are fixed, a run replays a CUDA graph on
    static buffers. Subclasses set `backend` and may override `callable_of`.
    """

    backend = ""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if not isinstance(plan.model, torch.nn.Module):
            raise UnsupportedError(
                f"{self.backend} runs torch modules only", "use --backend onnxruntime for ONNX files"
            )
        if plan.device == "cuda":
            require_torch_cuda()
        if plan.device == "cuda" and plan.precision == "int8-dynamic":
            raise UnsupportedError("torch's dynamic int8 layers run on the CPU only", "use --device cpu")
        torch.set_num_threads(plan.threads)
        torch.set_flush_denormal(True)  # a multiplication of denormals can take a hundred times as long
        self._dtype = torch.bfloat16 if plan.device == "cuda" and plan.precision == "bf16" else None
        self._autocast = plan.device == "cpu" and plan.precision == "bf16"
        self._notes: tuple[str, ...] = ()
        self._module = self.callable_of(self.converted(plan))
        self._graph = None
        if plan.device == "cuda":
            self._settle()

    def converted(self, plan: Plan) -> torch.nn.Module:
        """The module on the device. If a GPU runs it in another type, it is a converted copy, so the caller's module is not changed."""
        module = plan.model.to(plan.device).eval()
        return module if self._dtype is None else copy.deepcopy(module).to(self._dtype)

    def callable_of(self, module: torch.nn.Module) -> Any:
        """The callable that `run` calls; by default the module itself."""
        return module

    @torch.inference_mode()
    def _settle(self) -> None:
        """On a GPU: use autocast if the module mixes types, and capture a CUDA graph if all axes are fixed. Notes record failures."""
        example = self._sent(self.plan.example)
        if self._dtype is not None:
            try:
                self._call(example)
            except RuntimeError as error:
                if not any(word in str(error) for word in MIXED):
                    raise
                self._autocast = True
                self._notes += (
                    f"{self.backend} runs under autocast, because the module mixes types: {first_line(error)}",
                )
        self._graph, notes = graph_or_note(self._call, example, self.plan, self.backend)
        self._notes += notes

    def _call(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        with torch.autocast(self.plan.device, torch.bfloat16, enabled=self._autocast):
            outputs = self._module(*inputs)
        return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)

    def _sent(self, batch: Mapping[str, Array]) -> list[Tensor]:
        """The inputs in the module's order, on its device and in its float type."""
        sent = [torch.as_tensor(batch[name], device=self.plan.device) for name in self.plan.example]
        return [t.to(self._dtype) if self._dtype and t.is_floating_point() else t for t in sent]

    @torch.inference_mode()
    def stage(self, batch: Mapping[str, Array]) -> Staged:
        """Copy a batch to the device, into the graph's buffers if there is a graph."""
        check_batch(self.plan, batch)
        if self._graph is None:
            return Staged(self._sent(batch))
        return Staged(self._graph.take([torch.as_tensor(batch[name]) for name in self.plan.example]))

    def close(self) -> None:
        self._graph = None

    def facts(self) -> Description:
        weights = list(self.plan.model.parameters())
        packed = self.plan.precision == "int8-dynamic"  # int8 weights are packed objects without a known size
        size = None if self._dtype is None else self._dtype.itemsize
        return replace(
            self.plain_facts(self.backend, torch.__version__),
            weight_bytes=None if packed else sum(w.numel() * (size or w.element_size()) for w in weights),
            denormals="flushed",
            graph=None if self.plan.device == "cpu" else self._graph is not None,
            notes=self._notes,
        )
