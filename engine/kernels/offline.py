"""What a GPU would run, told without one: floor times, launches compiled to machine code, and what that code needs."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from buzzer.engine.kernels.jit import Launch, interpreted, triton
from buzzer.errors import UnsupportedError

TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int8: "i8",
    torch.int32: "i32",
}


H100_BANDWIDTH = (
    3.35e12  # bytes a second, and FLOPs a second by bits of an operand: NVIDIA's H100 SXM datasheet
)
H100_FLOPS = {8: 1979e12, 16: 989e12, 32: 67e12}


def floor(moved: int, flops: int, bits: int) -> float:
    """Least microseconds on an H100 (the roofline of Williams et al., CACM 2009)."""
    return max(moved / H100_BANDWIDTH, flops / H100_FLOPS[bits]) * 1e6


@dataclass(frozen=True)
class Code:
    """Compiled code: registers of a thread, bytes of its local memory (registers that did not fit), bytes of shared
    memory of a program, and the PTX."""

    registers: int
    local: int
    shared: int
    ptx: str

    @property
    def tensor_cores(self) -> str:
        """The instruction of matrix products: wgmma (Hopper), mma, or none."""
        return next((name for name in ("wgmma", "mma") if f"{name}." in self.ptx), "none")

    def facts(self) -> dict[str, Any]:
        """All but the PTX, for people and JSON."""
        used = {"registers": self.registers, "local": self.local, "shared": self.shared}
        return {**used, "tensor_cores": self.tensor_cores}


def compiled(launch: Launch, capability: int = 90) -> Code:
    """The code of `launch` for that compute capability (90 = H100). Needs Triton, no device.

    Raises UnsupportedError in a process whose kernels are interpreted.
    """
    if interpreted():
        raise UnsupportedError("kernels are interpreted in this process", "unset TRITON_INTERPRET")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    given = dict(zip(names, launch.arguments, strict=False))
    signature = {name: _type(given[name]) if name in given else "constexpr" for name in names}
    constants = {name: given[name] for name in given if signature[name] == "constexpr"}
    constants |= launch.constants | {"PDL": launch.pdl}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] == "*"}
    source = ASTSource(launch.kernel, signature, constants, aligned)
    target = GPUTarget("cuda", capability, 32)
    code: Any = triton.compile(source, target=target, options=launch.options)
    registers, local = resources(code.asm["cubin"])
    return Code(registers, local, code.metadata.shared, code.asm["ptx"])


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if value is None:
        return "constexpr"
    return "fp32" if isinstance(value, float) else "i32"


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory of a thread, as NVIDIA's tool that comes with Triton reads them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        told = subprocess.run([tool, "-res-usage", file], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found, told
    return int(found[1]), int(found[2])
