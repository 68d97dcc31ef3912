"""What a GPU would run, told without one: floor times, launches compiled to machine code, and what that code needs."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from buzzer.engine.kernels.jit import Launch, interpreted, triton
from buzzer.errors import UnsupportedError

H100_BANDWIDTH = (
    3.35e12  # bytes a second, and FLOPs a second by bits of an operand: NVIDIA's H100 SXM datasheet
)
SHARED = 227 << 10  # bytes of shared memory that a program can have on compute capability 9.0
H100_FLOPS = {8: 1979e12, 16: 989e12, 32: 67e12}


def floor(moved: int, flops: int, bits: int) -> float:
    """Least microseconds on an H100 (the roofline of Williams et al., CACM 2009)."""
    return max(moved / H100_BANDWIDTH, flops / H100_FLOPS[bits]) * 1e6


@dataclass(frozen=True)
class Code:
    """Compiled code: registers of a thread, bytes of its local memory (registers that did not fit), bytes of shared
    memory of a program, PTX, and the machine's instructions."""

    registers: int
    local: int
    shared: int
    ptx: str
    sass: str

    @property
    def tensor_cores(self) -> str:
        """The instruction of matrix products: wgmma (Hopper), mma, or none."""
        return next((name for name in ("wgmma", "mma") if f"{name}." in self.ptx), "none")

    def facts(self) -> dict[str, Any]:
        """All but the text, for people and JSON."""
        used = {"registers": self.registers, "local": self.local, "shared": self.shared}
        return {**used, "tensor_cores": self.tensor_cores}


class Compiler:
    """In the place of Triton's CUDA driver: what is launched is compiled by Triton's own path for a compute capability,
    90 being an H100's, checked against its shared memory, and not run. Tensors may be of any device, "meta" too.

    with Compiler(90): launch()
    """

    def __init__(self, capability: int, shared: int = SHARED) -> None:
        self.capability, self.shared = capability, shared
        self.utils = self

    def __enter__(self) -> Self:
        triton.runtime.driver.set_active(self)
        return self

    def __exit__(self, *_: object) -> None:
        triton.runtime.driver.set_active(None)  # Triton finds the machine's own when it next needs one

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return -self.capability  # no device's number: Triton keeps what it has loaded by that

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.shared}

    def load_binary(
        self, name: str, cubin: bytes, shared: int, device: int
    ) -> tuple[str, None, int, int, int]:
        """Module, function, registers and spilled ones (both unread), and the most threads of a program."""
        return name, None, 0, 0, 1024

    def unload_module(self, module: str) -> None:
        pass

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *_: None


def compiled(launch: Launch, capability: int = 90) -> Code:
    """The code of `launch` for that compute capability. Needs Triton, no device.

    Raises UnsupportedError in a process whose kernels are interpreted, and Triton's OutOfResources.
    """
    if interpreted():
        raise UnsupportedError("kernels are interpreted in this process", "unset TRITON_INTERPRET")
    with Compiler(capability):
        code = launch()
    registers, local, sass = dumped(code.asm["cubin"])
    return Code(registers, local, code.metadata.shared, code.asm["ptx"], sass)


def dumped(cubin: bytes) -> tuple[int, int, str]:
    """Registers and bytes of local memory of a thread, and the instructions, as NVIDIA's tool that comes with Triton reads
    them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(tool), "-res-usage", "-sass", str(file)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found, told
    return int(found[1]), int(found[2]), told
