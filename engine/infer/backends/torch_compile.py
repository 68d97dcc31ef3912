"""PyTorch with its compiler, Inductor: generated C++ on the CPU, Triton on the GPU."""

import os
import shutil
from typing import Any

import torch
from torch import Tensor

from buzzer.engine.infer.session import Plan
from buzzer.engine.infer.torch_module import TorchSession
from buzzer.errors import UnsupportedError

PRECISIONS = ("fp32", "bf16")
# If either is 1, `torch.compile` returns the module unchanged.
OFF = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")


class TorchCompile(TorchSession):
    """The module, compiled at its first run: once for all sizes if axes may change, else for the sizes of the example.

    torch runs the parts that it cannot compile eagerly, for example a module that calls `nn.GRU`. The first run raises
    UnsupportedError if nothing was compiled, because it would measure torch_eager.
    """

    backend = "torch_compile"
    _compiled = False  # whether compiled code is known to exist

    def callable_of(self, module: torch.nn.Module) -> Any:
        if self.plan.device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            raise UnsupportedError("torch.compile needs a C++ compiler", "install g++ or clang++")
        if switched_off():
            raise UnsupportedError("torch.compile is switched off", f"unset {' and '.join(OFF)}")
        open_axes = any(self.plan.dynamic.values())
        # The mode has no effect on the CPU. Inductor's own CUDA graphs copy inputs inside a run, so this class captures its own.
        mode = "max-autotune-no-cudagraphs" if self.plan.device == "cuda" and not open_axes else None
        return torch.compile(module, dynamic=open_axes, mode=mode)

    def _call(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        outputs = super()._call(inputs)
        if not self._compiled:
            self._compiled = has_compiled(self.plan.model)
            if not self._compiled:
                raise UnsupportedError(
                    "torch.compile could not compile any part of this module",
                    "use --backend torch_eager",
                )
        return outputs


def switched_off() -> bool:
    """Whether the environment or torch's configuration disables `torch.compile`."""
    import torch._dynamo

    return bool(torch._dynamo.config.disable) or os.environ.get(OFF[0]) == "1"


def has_compiled(module: torch.nn.Module) -> bool:
    """Whether compiled code exists for the `forward` of the module or of a submodule."""
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list as entries

    codes = {getattr(type(part).forward, "__code__", None) for part in module.modules()}
    return any(entries(code) for code in codes if code is not None)


def prepare(plan: Plan) -> TorchCompile:
    """A session on the plan's torch module. Its first run compiles the module."""
    return TorchCompile(plan)
