# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""What all kernels share: Triton, found or told missing, a launch, and the small functions inlined into kernels.

Conventions of every kernel: matrices are row-major and contiguous; sizes fixed by the model are constexpr, the number
of tokens is not; arithmetic is FP32; `LIMIT` is 0 for a float output, 127 for INT8, 448 for FP8 E4M3; `PDL` is
programmatic dependent launch (compute capability 9.0): only constants may be read before `wait_for_previous`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
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


SPINS = 1 << 22  # looks after which a barrier gives up: seconds
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
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        options = {"num_warps": self.warps, "num_stages": self.stages}
        object.__setattr__(self, "options", options | ({"launch_pdl": True} if self.pdl else {}))

    def __call__(self) -> None:
        self.kernel[self.grid](*self.arguments, **self.constants, PDL=self.pdl, **self.options)

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
def wait_for_previous(PDL: tl.constexpr):
    """Let the next kernel start, then wait until the previous one has ended and its writes can be seen."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
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

    All programs must be resident, so a grid has at most one a multiprocessor.
    """
    looks = 0
    while (tl.load(count, volatile=True) < target) & (looks < SPINS):
        looks += 1
    if looks >= SPINS:
        tl.atomic_add(gave_up, 1)
    # Each thread has read the arrivals with a relaxed load; with this fence behind it, that is an acquire (PTX ISA,
    # memory consistency model, "acquire pattern"). An atomic that adds 0 would be optimised away.
    if not INTERPRETED:
        tl.inline_asm_elementwise("fence.acq_rel.gpu; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()
