# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Products by NVIDIA's libraries, through torch: cuBLASLt for FP8 and INT8, cuBLAS for floats; and the kernel of their epilogues.

At many tokens they may be faster than this project's GEMM, but activation and requantisation need one more kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from buzzer.engine.kernels.gemm import Quantiser, Weights, inverse_and_zero
from buzzer.engine.kernels.jit import (
    Launch,
    activated,
    bytes_of,
    kernel,
    let_next_start,
    limit_of,
    quantised,
    tl,
    triton,
    wait_for_previous,
)


@dataclass(frozen=True)
class LibraryLaunch:
    """out [M, N] = a [M, K] @ weight.T by a library; call it to start the product.

    With operands in FP8 the result is multiplied by weights.scale; in INT8, out is int32 and the scale is left to the next kernel.
    bias: in the type of `out`, or None.  ones: float32 [M, 1], for FP8 only.
    """

    name: str
    a: Tensor
    weights: Weights
    out: Tensor
    bias: Tensor | None
    ones: Tensor | None

    def __call__(self) -> None:
        """Start the product on the current stream. Raises RuntimeError if the library refuses it."""
        if self.a.device.type == "meta":
            return
        w = self.weights.weight.t()
        if self.a.dtype == torch.int8:
            torch._int_mm(self.a, w, out=self.out)
        elif self.ones is not None:
            assert self.weights.scale is not None
            torch._scaled_mm(
                self.a, w, scale_a=self.ones, scale_b=self.weights.scale[None], bias=self.bias,
                out_dtype=self.out.dtype, use_fast_accum=True, out=self.out,
            )  # fmt: skip
        elif self.bias is None:
            torch.mm(self.a, w, out=self.out)
        else:
            torch.addmm(self.bias, self.a, w, out=self.out)

    @property
    def constant_bytes(self) -> int:
        """Bytes of weights and vectors."""
        return bytes_of(self.weights.weight, self.bias)

    @property
    def moved_bytes(self) -> int:
        """Bytes of activations that are read and written."""
        return bytes_of(self.a, self.out)

    @property
    def flops(self) -> int:
        """A multiply-add counts as two."""
        return 2 * self.a.numel() * self.out.shape[1]


@kernel
def finish(
    sums,  # [M, N]: float16, bfloat16, float32 or int32
    scale,  # float32 [N]; unused without SCALED
    bias,  # float32 [N]; unused without BIAS
    inverse,  # float32 [N], 1 / scale of the output; unused if LIMIT is 0
    out,  # [M, N]
    zero,  # zero point of the output
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    ACT: tl.constexpr,
    LIMIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """act(sums * scale + bias), quantised if LIMIT; a program computes BLOCK values of a row."""
    let_next_start(PDL)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < N
    scales = tl.load(scale + columns, mask=inside, other=0.0) if SCALED else 1.0
    biases = tl.load(bias + columns, mask=inside, other=0.0) if BIAS else 0.0
    inverses = tl.load(inverse + columns, mask=inside, other=0.0) if LIMIT else 1.0
    wait_for_previous(PDL)
    cell = tl.program_id(0).to(tl.int64) * N + columns
    x = tl.load(sums + cell, mask=inside, other=0).to(tl.float32) * scales + biases
    x = activated(x, ACT)
    if LIMIT:
        x = quantised(x, inverses, zero, LIMIT)
    tl.store(out + cell, x.to(out.dtype.element_ty), mask=inside)


def sums_dtype(dtype: torch.dtype, floats: torch.dtype) -> torch.dtype:
    """The type in which a library writes the product of operands in `dtype`. floats: the type of states between kernels."""
    return torch.int32 if dtype == torch.int8 else floats


def product(name: str, a: Tensor, weights: Weights, sums: Tensor, *, bias: bool = False) -> LibraryLaunch:
    """The launch of sums = a @ weight.T * scale, without the scale if `sums` is int32. bias: whether the library adds the bias.

    Raises ValueError for floats with a scale, which the libraries do not apply.
    """
    if weights.scale is not None and a.dtype.itemsize > 1:
        raise ValueError(f"{name}: a product of floats has no scale")
    added = weights.bias.to(sums.dtype) if bias and weights.bias is not None else None
    ones = torch.ones(len(a), 1, device=a.device) if a.dtype == torch.float8_e4m3fn else None
    return LibraryLaunch(name, a, weights, sums, added, ones)


def linear(
    name: str,
    a: Tensor,
    weights: Weights,
    out: Tensor,
    sums: Tensor,
    *,
    act: str = "none",
    quantiser: Quantiser | None = None,
) -> Sequence[LibraryLaunch | Launch]:
    """The launches of out = act(a @ weight.T * scale + bias), quantised by `quantiser` if out has eight bits.

    sums: a buffer [M, N] of `sums_dtype`. It is not used if the library can write `out`.
    """
    if act == "none" and out.dtype == sums.dtype:
        return (product(name, a, weights, out, bias=True),)
    (m, n), block = out.shape, min(1024, triton.next_power_of_2(out.shape[1]))
    scale = weights.scale if sums.dtype == torch.int32 else None
    inverse, zero = inverse_and_zero(quantiser)
    constants = {"N": n, "BLOCK": block, "SCALED": scale is not None, "BIAS": weights.bias is not None}
    epilogue = Launch(
        name=f"{name} epilogue",
        kernel=finish,
        grid=(m, -(-n // block)),
        arguments=(sums, scale, weights.bias, inverse, out, zero),
        constants=constants | {"ACT": act, "LIMIT": limit_of(out.dtype)},
        constant_bytes=bytes_of(scale, weights.bias),
        moved_bytes=bytes_of(sums, out),
        flops=10 * m * n,
        warps=max(1, block // 256),
    )
    return product(name, a, weights, sums), epilogue
