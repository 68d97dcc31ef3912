# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Code that all kernels share: the import of Triton, `Launch`, and small functions that are inlined into kernels.

Conventions of every kernel:

- Matrices are row-major and contiguous. Sizes that depend only on the model are constexpr; the number of tokens is not.
- Arithmetic is FP32.
- `LIMIT` is the largest value of the output type: 0 for a float output, 127 for INT8, 448 for FP8 E4M3.
- `PDL` means programmatic dependent launch (compute capability 9.0). A kernel then begins with `let_next_start`, and
  before `wait_for_previous` it reads only data that no kernel writes: weights, vectors, and the run's inputs.
"""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from buzzer.engine.kernels.facts import LaunchFacts
from buzzer.errors import UnsupportedError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise UnsupportedError("Triton is not installed", "pip install 'buzzer[kernels]'") from error

ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "tanh")
__all__ = [
    "tl",
    "triton",
]  # kernels import Triton from this module, so that one place reports that it is missing
LIMITS = {torch.int8: 127, torch.float8_e4m3fn: 448}  # dtype -> LIMIT

# Triton's interpreter loses the carry into the exponent in a cast to E4M3 (126 becomes 64); a GPU rounds correctly.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

# The decorator of kernels: one compilation serves any number of tokens and any zero point.
kernel: Callable[[Any], Any] = triton.jit(do_not_specialize=["M", "zero"])


SPINS = 1 << 15  # polls after which a barrier gives up: about ten milliseconds
BROKEN = tl.constexpr(1 << 30)  # counter of a barrier that timed out: more than any target
CARVEOUT = 9  # CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, in percent
CUT = ("ROWS", "COLUMNS", "DEPTH", "SPLIT", "KEYS")  # the constants that are sizes of tiles or blocks


@dataclass(frozen=True)
class Launch:
    """A kernel with all its arguments. Call it to start the kernel.

    constant_bytes: bytes of weights and tables; each run reads them from memory.
    moved_bytes: bytes of activations that are read and written; at small batches they mostly stay in the L2 cache.
    """

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: Mapping[str, object]  # the kernel's constexpr arguments
    constant_bytes: int
    moved_bytes: int
    flops: int
    warps: int = 4
    stages: int = 2
    pdl: bool = False
    cooperative: bool = False  # the driver refuses the launch unless all its programs can be resident at once
    options: Mapping[str, object] = field(init=False)  # Triton's launch options

    def __post_init__(self) -> None:
        options: dict[str, object] = {"num_warps": self.warps, "num_stages": self.stages}
        options |= {"launch_pdl": True} if self.pdl else {}
        options |= {"launch_cooperative_grid": True} if self.cooperative else {}
        object.__setattr__(self, "options", options)

    def __call__(self) -> Any:
        """Start the kernel. Returns Triton's compiled kernel, or None in the interpreter."""
        code = self.kernel[self.grid](*self.arguments, **self.constants, PDL=self.pdl, **self.options)
        if code is not None:
            prefer_shared_memory(code.function)
        return code

    def facts(self) -> LaunchFacts:
        """The kernel's launch options and work, for the command line."""
        cut: dict[str, Any] = {key.lower(): self.constants[key] for key in CUT if key in self.constants}
        return LaunchFacts(
            kernel=self.name,
            grid=self.grid,
            warps=self.warps,
            stages=self.stages,
            constant_bytes=self.constant_bytes,
            moved_bytes=self.moved_bytes,
            flops=self.flops,
            **cut,
        )


@cache
def prefer_shared_memory(function: int | None) -> None:
    """Request all of a multiprocessor's L1 as shared memory for this CUfunction.

    A multiprocessor changes its carve-out only when it is idle, so kernels with different carve-outs cannot overlap.
    """
    if function and cuda_driver().cuFuncSetAttribute(ctypes.c_void_p(function), CARVEOUT, 100):
        raise RuntimeError("cuFuncSetAttribute could not set the shared memory carve-out")


def cuda_driver() -> Any:
    """The CUDA driver library."""
    return ctypes.CDLL("libcuda.so.1")


def bytes_of(*tensors: torch.Tensor | None) -> int:
    """The size of all tensors in bytes; None counts as 0."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter: TRITON_INTERPRET was set when they were imported."""
    return bool(triton.knobs.runtime.interpret)


def limit_of(dtype: torch.dtype) -> int:
    """The constant `LIMIT` of a kernel that writes `dtype`."""
    return LIMITS.get(dtype, 0)


@triton.jit
def round_half_even(x):
    """`x` rounded to the nearest integer, |x| < 2**22: adding 1.5 * 2**23 leaves no bits for a fraction."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def round_to_e4m3(x):
    """`x`, |x| <= 448, rounded to a value of E4M3: steps of an eighth of its power of two, 2**-9 below 2**-6."""
    power = tl.maximum(tl.floor(tl.log2(tl.maximum(tl.abs(x), 1.0e-6))), -6.0)
    step = tl.exp2(power - 3.0)
    return round_half_even(x / step) * step


@triton.jit
def quantised(x, inverse, zero, LIMIT: tl.constexpr):
    """FP32 `x` quantised to eight bits but not yet cast: x * inverse + zero, saturated; `inverse` is 1 / scale."""
    if LIMIT == 127:
        y = round_half_even(tl.minimum(tl.maximum(x * inverse, -1024.0), 1024.0)) + zero
        return tl.minimum(tl.maximum(y, -128.0), 127.0)
    y = tl.minimum(tl.maximum(x * inverse, -448.0), 448.0)
    if INTERPRETED:
        y = round_to_e4m3(y)
    return y


@triton.jit
def activated(x, ACT: tl.constexpr):
    """The activation named ACT. gelu is exact and uses erf; gelu_tanh is its tanh approximation."""
    if ACT == "gelu":
        x = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACT == "relu":
        x = tl.maximum(x, 0.0)
    elif ACT == "tanh":
        x = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    return x


@triton.jit
def normed(x, gamma, beta, eps, inside, N: tl.constexpr):
    """Layer norm of one row (Ba et al., arXiv 1607.06450, equation 4), in two passes; `inside` masks the padding of N."""
    mean = tl.sum(x, 0) / N
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / N
    return centred / tl.sqrt(variance + eps) * gamma + beta


@triton.jit
def let_next_start(PDL: tl.constexpr):
    """Allow the next kernel to start on free multiprocessors, so that it loads its constants while this kernel runs."""
    if PDL and not INTERPRETED:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """Wait until the previous kernel has ended and its writes are visible. The interpreter runs one kernel after the other."""
    if PDL and not INTERPRETED:
        tl.extra.cuda.gdc_wait()


@triton.jit
def prefetch(at):
    """Start loading the lines at these pointers into L2, without waiting. Does nothing in the interpreter."""
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; // $0", "=r,l", [at.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def arrive(count):
    """Signal to the other programs of the grid that this program's writes can be read."""
    tl.debug_barrier()
    tl.atomic_add(count, 1, sem="release")


@triton.jit
def wait_for_all(count, gave_up, target, SPINS: tl.constexpr):
    """Wait until `target` programs have arrived. After SPINS polls, add 1 to `gave_up` and continue, so that the GPU does not hang.

    All programs must be resident, so a grid has at most one program per multiprocessor. A wait that times out sets the counter
    to BROKEN, so that later waits end at once. One thread of a program polls, with acquire semantics; the barrier after
    the poll makes the acquired writes visible to the other threads (PTX ISA, memory consistency model, causality order).
    """
    if INTERPRETED:
        looks = 0
        while (tl.load(count) < target) & (looks < SPINS):
            looks += 1
        if looks >= SPINS:
            tl.atomic_max(count, BROKEN)
            tl.atomic_add(gave_up, 1)
    else:
        tl.inline_asm_elementwise(
            """{
            .reg .pred p;
            .reg .b32 seen;
            mov.b32 $0, 0;
            mov.u32 seen, %tid.x;
            setp.ne.u32 p, seen, 0;
            @p bra told;
            look:
            ld.acquire.gpu.global.s32 seen, [$1];
            setp.ge.s32 p, seen, $3;
            @p bra told;
            add.s32 $0, $0, 1;
            setp.lt.s32 p, $0, $4;
            @p bra look;
            red.relaxed.gpu.global.max.s32 [$1], $5;
            red.relaxed.gpu.global.add.s32 [$2], 1;
            told:
            }""",
            "=&r,l,l,r,r,r",
            [count.to(tl.int64), gave_up.to(tl.int64), target, SPINS, BROKEN],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    tl.debug_barrier()
