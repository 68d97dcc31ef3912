# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Kernels with one program per row: embedding and norm; sum, residual and norm; pooling. BLOCK is a power of two >= N."""

from dataclasses import dataclass

from torch import Tensor

from buzzer.engine.kernels.gemm import Quantiser, inverse_and_zero
from buzzer.engine.kernels.jit import (
    Launch,
    bytes_of,
    kernel,
    let_next_start,
    limit_of,
    normed,
    quantised,
    tl,
    triton,
    wait_for_previous,
)


@triton.jit
def row_vectors(gamma, beta, bias, inverse, columns, inside, BIAS: tl.constexpr, LIMIT: tl.constexpr):
    """Gamma, beta, bias and inverse scale. They are constants, so they may be loaded before any wait."""
    g = tl.load(gamma + columns, mask=inside, other=0.0)
    b = tl.load(beta + columns, mask=inside, other=0.0)
    biases = tl.load(bias + columns, mask=inside, other=0.0) if BIAS else 0.0
    inverses = tl.load(inverse + columns, mask=inside, other=0.0) if LIMIT else 1.0
    return g, b, biases, inverses


@kernel
def embed(
    ids,  # int32 [3, M]: word, position and type of each token
    words,  # [vocabulary, N], float16, bfloat16 or float32, like positions and types
    positions,  # [longest, N]
    types,  # [types, N]
    gamma,  # float32 [N]
    beta,  # float32 [N]
    inverse,  # float32 [N], 1 / scale of `eight`; unused if LIMIT is 0
    out,  # [M, N]
    eight,  # [M, N], `out` in eight bits; unused if LIMIT is 0
    zero,
    eps,
    M,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Layer norm of the sum of three embeddings."""
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    g, b, _, inverses = row_vectors(gamma, beta, None, inverse, columns, inside, False, LIMIT)
    wait_for_previous(PDL)
    let_next_start(
        PDL
    )  # after the wait, since this is a run's first kernel: later ones read the run's inputs before they wait
    row = tl.program_id(0)
    word = words + tl.load(ids + row).to(tl.int64) * N + columns
    place = positions + tl.load(ids + M + row).to(tl.int64) * N + columns
    kind = types + tl.load(ids + 2 * M + row).to(tl.int64) * N + columns
    x = tl.load(word, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(kind, mask=inside, other=0.0).to(tl.float32)
    y = normed(x, g, b, eps, inside, N)
    cell = row.to(tl.int64) * N + columns
    tl.store(out + cell, y.to(out.dtype.element_ty), mask=inside)
    if LIMIT:
        q = quantised(y, inverses, zero, LIMIT)
        tl.store(eight + cell, q.to(eight.dtype.element_ty), mask=inside)


@triton.jit
def norm_row(
    parts,
    scales,
    g,
    b,
    biases,
    inverses,
    residual,
    out,
    eight,
    zero,
    eps,
    M,
    row,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Compute one row. g, b, biases and inverses are from `row_vectors`, scales are loaded as they are; the other arguments are as
    in `add_norm`."""
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    cell = row.to(tl.int64) * N + columns
    x = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(SPLIT):
        x += tl.load(parts + cell + part * (M.to(tl.int64) * N), mask=inside, other=0).to(tl.float32)
    if SCALED:
        x *= scales
    if BIAS:
        x += biases
    if RESIDUAL:
        x += tl.load(residual + cell, mask=inside, other=0.0).to(tl.float32)
    y = normed(x, g, b, eps, inside, N)
    tl.store(out + cell, y.to(out.dtype.element_ty), mask=inside)
    if LIMIT:
        q = quantised(y, inverses, zero, LIMIT)
        tl.store(eight + cell, q.to(eight.dtype.element_ty), mask=inside)


@kernel
def add_norm(
    parts,  # [SPLIT, M, N]: a GEMM's sums, float32, or with SPLIT = 1 its output
    scale,  # float32 [N], by which the sum of parts is multiplied; unused without SCALED
    bias,  # float32 [N]; unused without BIAS
    residual,  # [M, N]; unused without RESIDUAL
    gamma,  # float32 [N]
    beta,  # float32 [N]
    inverse,  # float32 [N], 1 / scale of `eight`; unused if LIMIT is 0
    out,  # [M, N]
    eight,  # [M, N], `out` in eight bits; unused if LIMIT is 0
    zero,
    eps,
    M,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    LIMIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Layer norm of (sum of parts * scale + bias + residual)."""
    let_next_start(PDL)
    columns = tl.arange(0, BLOCK)
    scales = tl.load(scale + columns, mask=columns < N, other=0.0) if SCALED else 1.0
    g, b, biases, inverses = row_vectors(gamma, beta, bias, inverse, columns, columns < N, BIAS, LIMIT)
    wait_for_previous(PDL)
    norm_row(
        parts, scales, g, b, biases, inverses, residual, out, eight, zero, eps, M, tl.program_id(0),
        N, BLOCK, SPLIT, SCALED, BIAS, RESIDUAL, LIMIT,
    )  # fmt: skip


@kernel
def pool(
    x,  # [tokens, N]
    starts,  # int32 [sequences + 1]: sequence i is the tokens starts[i] to starts[i + 1] - 1
    inverse,  # float32 [N], 1 / scale of the output; unused if LIMIT is 0
    out,  # [sequences, N]
    zero,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    MEAN: tl.constexpr,
    UNIT: tl.constexpr,
    LIMIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """A sequence's first token, or the mean of its tokens (0 if it has none); with UNIT, normalised to length 1."""
    let_next_start(PDL)
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    if LIMIT:
        inverses = tl.load(inverse + columns, mask=inside, other=0.0)
    wait_for_previous(PDL)
    row = tl.program_id(0)
    start = tl.load(starts + row)
    end = tl.load(starts + row + 1)
    if MEAN:
        total = tl.zeros((TOKENS, BLOCK), tl.float32)
        for first in range(start, end, TOKENS):
            token = first + tl.arange(0, TOKENS)
            cell = token.to(tl.int64)[:, None] * N + columns[None, :]
            total += tl.load(x + cell, mask=(token < end)[:, None] & inside[None, :], other=0.0).to(
                tl.float32
            )
        y = tl.sum(total, 0) / tl.maximum(end - start, 1)
    else:
        y = tl.load(
            x + start.to(tl.int64) * N + columns, mask=columns < tl.where(start < end, N, 0), other=0.0
        ).to(tl.float32)
    if UNIT:
        y = y / tl.maximum(tl.sqrt(tl.sum(y * y, 0)), 1e-12)
    if LIMIT:
        y = quantised(y, inverses, zero, LIMIT)
    tl.store(out + row.to(tl.int64) * N + columns, y.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Norm:
    """A layer norm: gamma and beta float32 [N]."""

    gamma: Tensor
    beta: Tensor
    eps: float


@dataclass(frozen=True)
class Eight:
    """A second output of a kernel, quantised to eight bits by `quantiser`."""

    out: Tensor
    quantiser: Quantiser


def _row_options(n: int) -> tuple[int, int]:
    """BLOCK and the number of warps, for eight values per thread."""
    block = triton.next_power_of_2(n)
    return block, min(8, max(1, block // 256))


def embedding(
    name: str,
    ids: Tensor,
    tables: tuple[Tensor, Tensor, Tensor],
    norm: Norm,
    out: Tensor,
    eight: Eight | None = None,
    *,
    pdl: bool = False,
) -> Launch:
    """The launch of out [M, N] = norm(words[ids[0]] + positions[ids[1]] + types[ids[2]]).

    ids: int32 [3, M].  tables: words, positions and types.  eight: a second output in eight bits.
    """
    m, n = out.shape
    block, warps = _row_options(n)
    target = eight.out if eight else None
    inverse, zero = inverse_and_zero(eight.quantiser if eight else None)
    limit = limit_of(target.dtype) if target is not None else 0
    return Launch(
        name=name,
        kernel=embed,
        grid=(m,),
        arguments=(ids, *tables, norm.gamma, norm.beta, inverse, out, target, zero, norm.eps, m),
        constants={"N": n, "BLOCK": block, "LIMIT": limit},
        constant_bytes=3 * m * n * tables[0].element_size(),
        moved_bytes=bytes_of(ids, out, target),
        flops=10 * m * n,
        warps=warps,
        pdl=pdl,
    )


def residual_norm(
    name: str,
    parts: Tensor,
    norm: Norm,
    out: Tensor,
    eight: Eight | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    pdl: bool = False,
) -> Launch:
    """The launch of out [M, N] = norm(sum of parts * scale + bias + residual).

    parts: [M, N], or the partial sums [split, M, N] of a split GEMM.  eight: a second output in eight bits.
    """
    m, n = out.shape
    split = parts.shape[0] if parts.ndim == 3 else 1
    block, warps = _row_options(n)
    target = eight.out if eight else None
    inverse, zero = inverse_and_zero(eight.quantiser if eight else None)
    limit = limit_of(target.dtype) if target is not None else 0
    arguments = (parts, scale, bias, residual, norm.gamma, norm.beta, inverse, out, target, zero, norm.eps, m)
    constants = {"N": n, "BLOCK": block, "SPLIT": split, "SCALED": scale is not None, "LIMIT": limit}
    return Launch(
        name=name,
        kernel=add_norm,
        grid=(m,),
        arguments=arguments,
        constants=constants | {"BIAS": bias is not None, "RESIDUAL": residual is not None},
        constant_bytes=bytes_of(scale, bias, norm.gamma, norm.beta),
        moved_bytes=bytes_of(parts, residual, out, target),
        flops=(8 + split) * m * n,
        warps=warps,
        pdl=pdl,
    )


def pooling(
    name: str,
    x: Tensor,
    starts: Tensor,
    out: Tensor,
    quantiser: Quantiser | None = None,
    *,
    mean: bool,
    unit: bool,
    pdl: bool = False,
) -> Launch:
    """The launch of out [sequences, N] = the mean of each sequence's rows of x, or its first row; with `unit`, normalised to length 1.

    starts: int32 [sequences + 1], the first row of each sequence, then the number of rows.
    """
    sequences, n = out.shape
    block, warps = _row_options(n)
    inverse, zero = inverse_and_zero(quantiser)
    return Launch(
        name=name,
        kernel=pool,
        grid=(sequences,),
        arguments=(x, starts, inverse, out, zero),
        constants={
            "N": n,
            "BLOCK": block,
            "TOKENS": 4,
            "MEAN": mean,
            "UNIT": unit,
            "LIMIT": limit_of(out.dtype),
        },
        constant_bytes=0,
        moved_bytes=bytes_of(x, starts, out),
        flops=x.numel(),
        warps=warps,
        pdl=pdl,
    )
