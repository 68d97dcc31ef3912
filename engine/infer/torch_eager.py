"""PyTorch as it is: the reference backend."""

from collections.abc import Mapping
from typing import Any

import torch

from buzzer.engine.infer.session import Array, Base, Description, Plan, as_arrays, check_batch
from buzzer.errors import UnsupportedError

# int8, fp8: what buzzer.engine.quant made of the module, simulated in FP32: for accuracy, not for speed.
PRECISIONS = ("fp32", "bf16", "int8", "fp8", "int8-dynamic")


class TorchEager(Base):
    """The module in evaluation mode; bf16 is autocast, outputs are fp32."""

    backend = "torch_eager"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if not isinstance(plan.model, torch.nn.Module):
            raise UnsupportedError(
                f"{self.backend} runs torch modules only", "use --backend onnxruntime for ONNX files"
            )
        if plan.device == "cuda" and not torch.cuda.is_available():
            raise UnsupportedError("no CUDA device here", "`buzzer env` shows what this machine has")
        if plan.device == "cuda" and plan.precision == "int8-dynamic":
            raise UnsupportedError("torch's dynamic int8 layers run on the CPU only", "use --device cpu")
        torch.set_num_threads(plan.threads)
        torch.set_flush_denormal(True)  # denormals can slow a multiply a hundredfold, by luck of the weights
        self._module = self.ready(plan)

    def ready(self, plan: Plan) -> Any:
        """What is called in `run`."""
        module = plan.model.to(plan.device).eval()
        return dynamic(module) if plan.precision == "int8-dynamic" else module

    @torch.inference_mode()
    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        check_batch(self.plan, batch)
        inputs = [torch.as_tensor(batch[name], device=self.plan.device) for name in self.plan.example]
        with torch.autocast(self.plan.device, torch.bfloat16, enabled=self.plan.precision == "bf16"):
            outputs = self._module(*inputs)
        tensors = outputs if isinstance(outputs, tuple | list) else (outputs,)
        floats = [t.float() if t.is_floating_point() else t for t in tensors]
        return as_arrays([t.cpu().numpy() for t in floats], self.plan.outputs)

    def facts(self) -> Description:
        weights = list(self.plan.model.parameters())
        packed = self.plan.precision == "int8-dynamic"  # into objects that tell no size
        return Description(
            backend=self.backend,
            version=torch.__version__,
            precision=self.plan.precision,
            device=self.plan.device,
            threads=self.plan.threads,
            parameters=sum(w.numel() for w in weights),
            weight_bytes=None if packed else sum(w.numel() * w.element_size() for w in weights),
            denormals="flushed",
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
