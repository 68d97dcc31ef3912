"""Least times of kernels on a GPU, and the code and resources of compiled launches. Needs no GPU."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from buzzer.engine.kernels.facts import CodeFacts
from buzzer.engine.kernels.jit import Launch, interpreted, triton
from buzzer.errors import UnsupportedError

# NVIDIA's H100 SXM datasheet: bytes per second, and FLOPs per second by the bits of an operand.
H100_BANDWIDTH = 3.35e12
H100_FLOPS = {8: 1979e12, 16: 989e12, 32: 67e12}
SHARED = 227 << 10  # bytes of shared memory that a program can have on compute capability 9.0


def floor(moved: int, flops: int, bits: int) -> float:
    """The least time on an H100 in microseconds (the roofline of Williams et al., CACM 2009).

    moved: bytes read from memory.  bits: bits of an operand.
    """
    return max(moved / H100_BANDWIDTH, flops / H100_FLOPS[bits]) * 1e6


@dataclass(frozen=True)
class Code:
    """Compiled code: registers per thread, bytes of local memory per thread (spilled registers), bytes of shared memory
    per program, PTX, and machine instructions."""

    registers: int
    local: int
    shared: int
    ptx: str
    sass: str

    @property
    def tensor_cores(self) -> str:
        """The instruction of matrix products: "wgmma" (Hopper), "mma", or "none"."""
        return next((name for name in ("wgmma", "mma") if f"{name}." in self.ptx), "none")

    def facts(self) -> CodeFacts:
        """The code's resources, for the command line."""
        return CodeFacts(self.registers, self.local, self.shared, self.tensor_cores)


class Compiler:
    """Replaces Triton's CUDA driver: launches are compiled for a compute capability and checked against its shared memory, but
    not run. Tensors may be on any device, including "meta".

    with Compiler(90): launch()  # 90 for an H100
    """

    def __init__(self, capability: int, shared: int = SHARED) -> None:
        self.capability, self.shared = capability, shared
        self.utils = self

    def __enter__(self) -> Self:
        triton.runtime.driver.set_active(self)
        return self

    def __exit__(self, *_: object) -> None:
        triton.runtime.driver.set_active(None)  # at the next launch, Triton detects the machine's driver

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return -self.capability  # not a real device number, because Triton caches loaded kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.shared}

    def load_binary(
        self, name: str, cubin: bytes, shared: int, device: int
    ) -> tuple[str, None, int, int, int]:
        """Module, function, registers, spilled registers (both 0, unused), and the maximum number of threads of a program."""
        return name, None, 0, 0, 1024

    def unload_module(self, module: str) -> None:
        pass

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *_: None


def compiled(launch: Launch, capability: int = 90) -> Code:
    """The code of a launch for a compute capability. Needs Triton, but no device.

    Raises UnsupportedError in a process whose kernels are interpreted, and Triton's OutOfResources.
    """
    if interpreted():
        raise UnsupportedError("kernels are interpreted in this process", "unset TRITON_INTERPRET")
    with Compiler(capability):
        code = launch()
    registers, local, sass = dumped(code.asm["cubin"])
    return Code(registers, local, code.metadata.shared, code.asm["ptx"], sass)


def dumped(cubin: bytes) -> tuple[int, int, str]:
    """Registers and bytes of local memory per thread, and the instructions, from Triton's copy of cuobjdump."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(tool), "-res-usage", "-sass", str(file)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", output)
    assert match, output
    return int(match[1]), int(match[2]), output
