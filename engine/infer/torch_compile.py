"""PyTorch through its compiler (Inductor): generated C++ on the CPU, Triton on the GPU."""

import shutil
from typing import Any

import torch

from buzzer.engine.infer.session import Plan
from buzzer.engine.infer.torch_eager import TorchEager
from buzzer.errors import UnsupportedError

PRECISIONS = ("fp32", "bf16")


class TorchCompile(TorchEager):
    """The module compiled at its first run, once for all sizes where axes may change, else for the example's."""

    backend = "torch_compile"

    def ready(self, module: torch.nn.Module) -> Any:
        if self.plan.device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            raise UnsupportedError("torch.compile needs a C++ compiler", "install g++ or clang++")
        opened = any(self.plan.dynamic.values())
        # The CPU has no use for the mode. Inductor's own graphs copy inputs inside a run: ours is captured around its kernels.
        mode = "max-autotune-no-cudagraphs" if self.plan.device == "cuda" and not opened else None
        return torch.compile(module, dynamic=opened, mode=mode)


def prepare(plan: Plan) -> TorchCompile:
    return TorchCompile(plan)
