"""PyTorch as it is: the reference backend."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from buzzer.engine.device import no_cuda
from buzzer.engine.infer.graphed import Replayed, Staged, first_line, graph_or_note
from buzzer.engine.infer.session import Array, Description, Plan, check_batch
from buzzer.errors import UnsupportedError

# int8, fp8: what buzzer.engine.quant made of the module, simulated in FP32: for accuracy, not for speed.
PRECISIONS = ("fp32", "bf16", "int8", "fp8", "int8-dynamic")
MIXED = ("dtype", "scalar type")  # in torch's errors on operands of two types


class TorchEager(Replayed):
    """The module in evaluation mode; outputs are fp32.

    On the CPU bf16 is autocast. On a GPU the module is converted once, and where all axes are fixed a run replays a CUDA graph
    on buffers that stay in place.
    """

    backend = "torch_eager"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if not isinstance(plan.model, torch.nn.Module):
            raise UnsupportedError(
                f"{self.backend} runs torch modules only", "use --backend onnxruntime for ONNX files"
            )
        if plan.device == "cuda" and not torch.cuda.is_available():
            raise UnsupportedError(no_cuda(), "`buzzer env` shows what this machine has")
        if plan.device == "cuda" and plan.precision == "int8-dynamic":
            raise UnsupportedError("torch's dynamic int8 layers run on the CPU only", "use --device cpu")
        torch.set_num_threads(plan.threads)
        torch.set_flush_denormal(True)  # denormals can slow a multiply a hundredfold, by luck of the weights
        self._dtype = torch.bfloat16 if plan.device == "cuda" and plan.precision == "bf16" else None
        self._autocast = plan.device == "cpu" and plan.precision == "bf16"
        self._notes: tuple[str, ...] = ()
        self._module = self.ready(self.converted(plan))
        self._graph = None
        if plan.device == "cuda":
            self._settle()

    def converted(self, plan: Plan) -> torch.nn.Module:
        """The module on the device, on a GPU with weights of the precision; the caller's own keeps its types."""
        module = plan.model.to(plan.device).eval()
        return module if self._dtype is None else copy.deepcopy(module).to(self._dtype)

    def ready(self, module: torch.nn.Module) -> Any:
        """What is called in `run`."""
        if self.plan.precision != "int8-dynamic":
            return module
        if not any(isinstance(part, torch.nn.Linear) for part in module.modules()):
            raise UnsupportedError("int8-dynamic quantises nothing of this model: it has no linear layer")
        return dynamic(module)

    @torch.inference_mode()
    def _settle(self) -> None:
        """On a GPU: whether the module runs in the one type, and its graph where axes are fixed. What cannot be had is noted."""
        example = self._sent(self.plan.example)
        if self._dtype is not None:
            try:
                self._call(example)
            except RuntimeError as error:
                if not any(word in str(error) for word in MIXED):
                    raise
                self._autocast = True
                told = f"{self.backend} runs under autocast, for the module mixes types: {first_line(error)}"
                self._notes += (told,)
        self._graph, notes = graph_or_note(self._call, example, self.plan, self.backend)
        self._notes += notes

    def _call(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        with torch.autocast(self.plan.device, torch.bfloat16, enabled=self._autocast):
            outputs = self._module(*inputs)
        return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)

    def _sent(self, batch: Mapping[str, Array]) -> list[Tensor]:
        """A batch as the module takes it."""
        sent = [torch.as_tensor(batch[name], device=self.plan.device) for name in self.plan.example]
        return [t.to(self._dtype) if self._dtype and t.is_floating_point() else t for t in sent]

    @torch.inference_mode()
    def stage(self, batch: Mapping[str, Array]) -> Staged:
        """Copy a batch to the device: into the graph's buffers where there is one."""
        check_batch(self.plan, batch)
        if self._graph is None:
            return Staged(self._sent(batch))
        return Staged(self._graph.take([torch.as_tensor(batch[name]) for name in self.plan.example]))

    def close(self) -> None:
        self._graph = None

    def facts(self) -> Description:
        weights = list(self.plan.model.parameters())
        packed = self.plan.precision == "int8-dynamic"  # into objects that tell no size
        size = None if self._dtype is None else self._dtype.itemsize
        return Description(
            backend=self.backend,
            version=torch.__version__,
            precision=self.plan.precision,
            device=self.plan.device,
            threads=self.plan.threads,
            parameters=sum(w.numel() for w in weights),
            weight_bytes=None if packed else sum(w.numel() * (size or w.element_size()) for w in weights),
            denormals="flushed",
            graph=None if self.plan.device == "cpu" else self._graph is not None,
            notes=self._notes,
        )


def dynamic(module: torch.nn.Module) -> torch.nn.Module:
    """A copy whose linear layers have int8 weights and quantise their inputs at run time."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch moves this to torchao, which has no such kernels for these CPUs
        from torch.ao import quantization

        found: torch.nn.Module = quantization.quantize_dynamic(
            module, {torch.nn.Linear: quantization.per_channel_dynamic_qconfig}
        )
    return found


def prepare(plan: Plan) -> TorchEager:
    return TorchEager(plan)
