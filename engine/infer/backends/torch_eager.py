"""PyTorch without a compiler: the reference backend."""

import warnings

import torch

from buzzer.engine.infer.session import Plan
from buzzer.engine.infer.torch_module import TorchSession
from buzzer.errors import UnsupportedError

# int8 and fp8: a module of buzzer.engine.quant, which simulates them in FP32, to measure accuracy and not speed.
PRECISIONS = ("fp32", "bf16", "int8", "fp8", "int8-dynamic")


class TorchEager(TorchSession):
    """Runs the module operator by operator; for int8-dynamic, a copy with dynamically quantised linear layers."""

    backend = "torch_eager"

    def callable_of(self, module: torch.nn.Module) -> torch.nn.Module:
        if self.plan.precision != "int8-dynamic":
            return module
        if not any(isinstance(part, torch.nn.Linear) for part in module.modules()):
            raise UnsupportedError("int8-dynamic cannot quantise this model: it has no linear layer")
        return dynamic(module)


def dynamic(module: torch.nn.Module) -> torch.nn.Module:
    """A copy whose linear layers have int8 weights and quantise their inputs at run time."""
    with warnings.catch_warnings():
        # Deprecated in favour of torchao, which has no dynamic int8 kernels for these CPUs.
        warnings.simplefilter("ignore")
        from torch.ao import quantization

        quantised: torch.nn.Module = quantization.quantize_dynamic(
            module, {torch.nn.Linear: quantization.per_channel_dynamic_qconfig}
        )
    return quantised


def prepare(plan: Plan) -> TorchEager:
    """A session on the plan's torch module."""
    return TorchEager(plan)
