"""PyTorch as it is: the reference backend."""

from collections.abc import Mapping

import torch

from buzzer.engine.infer.session import Array, Base, Description, Plan, as_arrays, check_batch
from buzzer.errors import UnsupportedError

PRECISIONS = ("fp32", "bf16")


class TorchEager(Base):
    """The module in evaluation mode; bf16 is autocast, outputs are fp32."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if not isinstance(plan.model, torch.nn.Module):
            raise UnsupportedError(
                "torch_eager runs torch modules only", "use --backend onnxruntime for ONNX files"
            )
        if plan.device == "cuda" and not torch.cuda.is_available():
            raise UnsupportedError("no CUDA device here", "`buzzer env` shows what this machine has")
        torch.set_num_threads(plan.threads)
        torch.set_flush_denormal(True)  # denormals can slow a multiply a hundredfold, by luck of the weights
        self._module = plan.model.to(plan.device).eval()

    @torch.inference_mode()
    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        check_batch(self.plan, batch)
        inputs = [torch.as_tensor(batch[name], device=self.plan.device) for name in self.plan.example]
        with torch.autocast(self.plan.device, torch.bfloat16, enabled=self.plan.precision == "bf16"):
            outputs = self._module(*inputs)
        tensors = outputs if isinstance(outputs, tuple | list) else (outputs,)
        floats = [t.float() if t.is_floating_point() else t for t in tensors]
        return as_arrays([t.cpu().numpy() for t in floats], self.plan.outputs)

    def describe(self) -> Description:
        weights = list(self._module.parameters())
        return Description(
            backend="torch_eager",
            version=torch.__version__,
            precision=self.plan.precision,
            device=self.plan.device,
            threads=self.plan.threads,
            parameters=sum(w.numel() for w in weights),
            weight_bytes=sum(w.numel() * w.element_size() for w in weights),
        )


def prepare(plan: Plan) -> TorchEager:
    return TorchEager(plan)
