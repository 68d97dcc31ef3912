"""PyTorch through its compiler (Inductor): generated C++ on the CPU, Triton on the GPU."""

import os
import shutil
from typing import Any

import torch
from torch import Tensor

from buzzer.engine.infer.backends.torch_eager import TorchEager
from buzzer.engine.infer.session import Plan
from buzzer.errors import UnsupportedError

PRECISIONS = ("fp32", "bf16")
# With either at 1 `torch.compile` hands back the module.
OFF = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")


class TorchCompile(TorchEager):
    """The module compiled at its first run, once for all sizes where axes may change, else for the example's.

    The compiler leaves alone what it cannot compile (any module that calls `nn.GRU`, say). Raises UnsupportedError at the first run
    where that is all of it: the run would be torch_eager's under another name.
    """

    backend = "torch_compile"
    _compiled = False  # whether it is known that there is compiled code

    def ready(self, module: torch.nn.Module) -> Any:
        if self.plan.device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            raise UnsupportedError("torch.compile needs a C++ compiler", "install g++ or clang++")
        if switched_off():
            raise UnsupportedError("torch.compile is switched off", f"unset {' and '.join(OFF)}")
        opened = any(self.plan.dynamic.values())
        # The CPU has no use for the mode. Inductor's own graphs copy inputs inside a run: ours is captured around its kernels.
        mode = "max-autotune-no-cudagraphs" if self.plan.device == "cuda" and not opened else None
        return torch.compile(module, dynamic=opened, mode=mode)

    def _call(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        outputs = super()._call(inputs)
        if not self._compiled:
            self._compiled = has_compiled(self.plan.model)
            if not self._compiled:
                raise UnsupportedError(
                    "torch.compile compiled nothing of this module",
                    "use --backend torch_eager, which it would be",
                )
        return outputs


def switched_off() -> bool:
    import torch._dynamo

    return bool(torch._dynamo.config.disable) or os.environ.get(OFF[0]) == "1"


def has_compiled(module: torch.nn.Module) -> bool:
    """Whether there is compiled code of the module's `forward`, or of a part's."""
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list as entries

    codes = {getattr(type(part).forward, "__code__", None) for part in module.modules()}
    return any(entries(code) for code in codes if code is not None)


def prepare(plan: Plan) -> TorchCompile:
    return TorchCompile(plan)
