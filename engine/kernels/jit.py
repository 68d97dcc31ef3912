# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""What all kernels share: Triton, found or told missing, a launch, and the small functions inlined into kernels.

Conventions of every kernel: matrices are row-major and contiguous; sizes fixed by the model are constexpr, the number
of tokens is not; arithmetic is FP32; `LIMIT` is 0 for a float output, 127 for INT8, 448 for FP8 E4M3; `PDL` is
programmatic dependent launch (compute capability 9.0): a kernel begins with `let_next_start`, and before
`wait_for_previous` it reads only what no kernel writes: weights, vectors, and the run's own inputs.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from buzzer.errors import UnsupportedError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise UnsupportedError("Triton is not installed", "pip install 'buzzer[kernels]'") from error

ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "tanh")
__all__ = ["tl", "triton"]  # what kernels import from here, so that a missing Triton is told once
LIMITS = {torch.int8: 127, torch.float8_e4m3fn: 448}  # dtype -> LIMIT

# The interpreter's own cast to E4M3 loses the carry into the exponent (126 becomes 64), a GPU's rounds right.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

# A kernel is compiled once for any number of tokens and any zero point.
kernel: Callable[[Any], Any] = triton.jit(do_not_specialize=["M", "zero"])


SPINS = 1 << 15  # looks after which a barrier gives up: some ten milliseconds
BROKEN = tl.constexpr(1 << 30)  # the counter of a barrier that was given up: more than any that is awaited
CARVEOUT = 9  # CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, in percent
CUT = ("ROWS", "COLUMNS", "DEPTH", "SPLIT", "KEYS")  # constants that say how the work is cut


@dataclass(frozen=True)
class Launch:
    """A kernel with all its arguments: call it to run it.

    `constant_bytes` are weights and tables, which come from memory each time; `moved_bytes` are activations in and
    out, which the L2 cache mostly holds at small batches.
    """

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    constant_bytes: int
    moved_bytes: int
    flops: int
    warps: int = 4
    stages: int = 2
    pdl: bool = False
    cooperative: bool = False  # refused by the driver unless all its programs are resident at once
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        options: dict[str, Any] = {"num_warps": self.warps, "num_stages": self.stages}
        options |= {"launch_pdl": True} if self.pdl else {}
        options |= {"launch_cooperative_grid": True} if self.cooperative else {}
        object.__setattr__(self, "options", options)

    def __call__(self) -> Any:
        """Start it; returns Triton's compiled kernel, None in the interpreter."""
        code = self.kernel[self.grid](*self.arguments, **self.constants, PDL=self.pdl, **self.options)
        if code is not None:
            prefer_shared_memory(code.function)
        return code

    def facts(self) -> dict[str, Any]:
        """What it is and moves, for people and JSON."""
        counts = {"constant_bytes": self.constant_bytes, "moved_bytes": self.moved_bytes, "flops": self.flops}
        cut = {key.lower(): self.constants[key] for key in CUT if key in self.constants}
        return {
            "kernel": self.name,
            "grid": self.grid,
            "warps": self.warps,
            "stages": self.stages,
            **cut,
            **counts,
        }


@cache
def prefer_shared_memory(function: int | None) -> None:
    """Ask for all of a multiprocessor's L1 as shared memory where that CUfunction runs.

    A multiprocessor changes its carve-out only when it is idle, so kernels of different ones cannot overlap.
    """
    if function and cuda_driver().cuFuncSetAttribute(ctypes.c_void_p(function), CARVEOUT, 100):
        raise RuntimeError("cuFuncSetAttribute refused the carve-out of shared memory")


def cuda_driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def bytes_of(*tensors: torch.Tensor | None) -> int:
    """Bytes that the tensors hold; None holds none."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter: TRITON_INTERPRET was set when they were first imported."""
    return bool(triton.knobs.runtime.interpret)


def limit_of(dtype: torch.dtype) -> int:
    """`LIMIT` of a kernel that writes `dtype`."""
    return LIMITS.get(dtype, 0)


@triton.jit
def round_half_even(x):
    """|x| < 2**22: adding 1.5 * 2**23 leaves no bits for a fraction."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def round_to_e4m3(x):
    """`x`, |x| <= 448, on the grid of E4M3: steps of an eighth of its power of two, 2**-9 below 2**-6."""
    power = tl.maximum(tl.floor(tl.log2(tl.maximum(tl.abs(x), 1.0e-6))), -6.0)
    step = tl.exp2(power - 3.0)
    return round_half_even(x / step) * step


@triton.jit
def quantised(x, inverse, zero, LIMIT: tl.constexpr):
    """FP32 `x` on the grid of eight bits, not yet cast: x * inverse + zero, saturated; `inverse` is 1 / scale."""
    if LIMIT == 127:
        y = round_half_even(tl.minimum(tl.maximum(x * inverse, -1024.0), 1024.0)) + zero
        return tl.minimum(tl.maximum(y, -128.0), 127.0)
    y = tl.minimum(tl.maximum(x * inverse, -448.0), 448.0)
    if INTERPRETED:
        y = round_to_e4m3(y)
    return y


@triton.jit
def activated(x, ACT: tl.constexpr):
    """The activation of that name; gelu is exact, by erf, gelu_tanh its approximation by tanh."""
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
    """Let the next kernel start where there is room, so that its constants travel while this one works."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """Wait until the previous kernel has ended and its writes can be seen."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def prefetch(at):
    """Ask for the lines of L2 at these pointers; the answer is not waited for. The interpreter has no such thing."""
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; // $0", "=r,l", [at.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def arrive(count):
    """Tell the other programs of the grid that what this one wrote can be read."""
    tl.debug_barrier()
    tl.atomic_add(count, 1, sem="release")


@triton.jit
def wait_for_all(count, gave_up, target, SPINS: tl.constexpr):
    """Wait until `target` arrivals were told; after SPINS looks count it in `gave_up` and go on, lest the GPU hangs.

    All programs must be resident, so a grid has at most one a multiprocessor. Where one waits in vain, the counter is
    broken for all, so that no other wait takes as long. One thread of a program looks, with acquire semantics; what
    it acquired, the barrier hands on to the others (PTX ISA, memory consistency model, causality order).
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
