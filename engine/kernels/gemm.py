# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""out = epilogue(a @ w.T): one kernel for every linear layer, with split-K for few rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from buzzer.engine.kernels.jit import (
    Launch,
    activated,
    bytes_of,
    kernel,
    let_next_start,
    limit_of,
    prefetch,
    quantised,
    tl,
    triton,
    wait_for_previous,
)

GROUP = 8  # row blocks whose programs share weights in L2
# Largest number of values of a tile whose residual is loaded before the product; larger tiles would leave too few registers.
SMALL = tl.constexpr(64 * 64)


@dataclass(frozen=True, order=True)
class Tile:
    """How a GEMM is divided among programs.

    rows, columns, depth: size of a tile.  split: number of shares of K.  warps: warps of a program.  stages: stages of the
    load pipeline.  whole: a share of K is one step of `depth`; its weights are loaded before waiting for the previous kernel.
    library: whether one of NVIDIA's libraries was measured to be faster; the mode "library" then uses it.
    """

    rows: int
    columns: int
    depth: int
    split: int = 1
    warps: int = 4
    stages: int = 4
    whole: bool = False
    library: bool = False

    def shared(self, width: int) -> int:
        """Bytes of shared memory for the loads in flight; width: bytes of a value."""
        return (1 if self.whole else self.stages) * (self.rows + self.columns) * self.depth * width


@triton.jit
def vectors_of(
    scale,
    bias,
    inverse,
    column_tile,
    N: tl.constexpr,
    COLUMNS: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Scale, bias and inverse scale of a tile's columns. They are constants, so they may be loaded before any wait."""
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    kept = columns < N
    scales = tl.load(scale + columns, mask=kept, other=0.0) if SCALED else 1.0
    biases = tl.load(bias + columns, mask=kept, other=0.0) if BIAS else 0.0
    inverses = tl.load(inverse + columns, mask=kept, other=0.0) if LIMIT else 1.0
    return scales, biases, inverses


@triton.jit
def whole_share(
    w, column_tile, part, N: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr
):
    """The weights of a tile whose share of K is a single step."""
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    depth = part * DEPTH + tl.arange(0, DEPTH)
    return tl.load(w + (columns % N)[:, None] * K + depth[None, :])


@triton.jit
def gemm_tile(
    a,
    w,
    share_of_w,
    scales,
    biases,
    inverses,
    residual,
    out,
    zero,
    M,
    row_tile,
    column_tile,
    part,
    N: tl.constexpr,
    K: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACT: tl.constexpr,
    LIMIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Compute one tile, for share `part` of K.

    scales, biases and inverses are from `vectors_of`; with WHOLE, share_of_w is from `whole_share`; the other arguments
    are as in `gemm`.
    """
    in_tile = tl.arange(0, ROWS)
    rows = row_tile * ROWS + in_tile
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    share: tl.constexpr = (K + DEPTH * SPLIT - 1) // (DEPTH * SPLIT) * DEPTH
    depth = part * share + tl.arange(0, DEPTH)
    # Rows past the end read an existing row; their results are not stored.
    a_at = a + (rows % M).to(tl.int64)[:, None] * K + depth[None, :]
    w_at = w + (columns % N)[:, None] * K + depth[None, :]
    kept = (rows < M)[:, None] & (columns < N)[None, :]
    first = (row_tile * ROWS).to(tl.int64) * N
    cell = (
        in_tile[:, None] * N + columns[None, :]
    )  # 32 bits, since 64-bit offsets would take registers from the tile
    small: tl.constexpr = RESIDUAL and ROWS * COLUMNS <= SMALL
    if small:
        added = tl.load(residual + first + cell, mask=kept, other=0.0)
    whole: tl.constexpr = w.dtype.element_ty == tl.int8
    total = tl.zeros((ROWS, COLUMNS), tl.int32 if whole else tl.float32)
    if WHOLE:
        total = tl.dot(
            tl.load(a_at), tl.trans(share_of_w), total, input_precision="ieee", out_dtype=total.dtype
        )
    else:
        for step in tl.range(0, share, DEPTH, num_stages=STAGES):
            if K % (DEPTH * SPLIT) == 0:
                x, y = tl.load(a_at + step), tl.load(w_at + step)
            else:
                inside = (depth + step < K)[None, :]
                x = tl.load(a_at + step, mask=inside, other=0.0)
                y = tl.load(w_at + step, mask=inside, other=0.0)
            total = tl.dot(x, tl.trans(y), total, input_precision="ieee", out_dtype=total.dtype)

    result = total.to(tl.float32)
    if SCALED:
        result *= scales[None, :]
    if BIAS:
        result += biases[None, :]
    if RESIDUAL:
        if not small:
            added = tl.load(residual + first + cell, mask=kept, other=0.0)
        result += added.to(tl.float32)
    result = activated(result, ACT)
    if LIMIT:
        result = quantised(result, inverses[None, :], zero, LIMIT)
    if SPLIT > 1:
        first += part.to(tl.int64) * M * N
    tl.store(out + first + cell, result.to(out.dtype.element_ty), mask=kept)


@triton.jit
def prefetch_tile(
    w,
    column_tile,
    part,
    N: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Start loading the weights of a tile into the L2 cache, in lines of 128 bytes."""
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    share: tl.constexpr = (K + DEPTH * SPLIT - 1) // (DEPTH * SPLIT) * DEPTH
    line: tl.constexpr = 128 // (w.dtype.element_ty.primitive_bitwidth // 8)
    steps = tl.arange(0, triton.next_power_of_2((share + line - 1) // line)) * line
    ahead = part * share + tl.minimum(steps, share - 1)
    prefetch(w + (columns % N)[:, None] * K + tl.minimum(ahead, K - 1)[None, :])


@kernel
def gemm(
    a,  # [M, K]: float16, bfloat16, float32, int8 or float8_e4m3fn
    w,  # [N, K], same dtype as a: a torch Linear's weight
    scale,  # float32 [N], input scale * weight scale; unused without SCALED
    bias,  # float32 [N]; unused without BIAS
    residual,  # float16, bfloat16 or float32 [M, N]; unused without RESIDUAL
    inverse,  # float32 [N], 1 / scale of the output; unused if LIMIT is 0
    out,  # [M, N]; with SPLIT > 1 float32 [SPLIT, M, N], sums that a later kernel adds
    zero,  # zero point of the output
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACT: tl.constexpr,
    LIMIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    GROUP: tl.constexpr,
    PDL: tl.constexpr,
):
    """Each program computes one tile for one share of K.

    Programs are ordered down the rows in groups of GROUP row blocks, so that concurrent programs share weights in the L2 cache.
    """
    let_next_start(PDL)
    row_tiles = tl.cdiv(M, ROWS)
    column_tiles: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    at = tl.program_id(0)
    first = at // (GROUP * column_tiles) * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    row_tile = first + at % (GROUP * column_tiles) % height
    column_tile = at % (GROUP * column_tiles) // height
    part = tl.program_id(1)
    share_of_w = w  # unused without WHOLE
    if WHOLE:  # weights are constants, so they may be loaded or prefetched before the wait
        share_of_w = whole_share(w, column_tile, part, N, K, COLUMNS, DEPTH)
    elif PDL:
        prefetch_tile(w, column_tile, part, N, K, COLUMNS, DEPTH, SPLIT)
    scales, biases, inverses = vectors_of(scale, bias, inverse, column_tile, N, COLUMNS, SCALED, BIAS, LIMIT)
    wait_for_previous(PDL)
    gemm_tile(
        a, w, share_of_w, scales, biases, inverses, residual, out, zero, M, row_tile, column_tile, part,
        N, K, SCALED, BIAS, RESIDUAL, ACT, LIMIT, ROWS, COLUMNS, DEPTH, SPLIT, STAGES, WHOLE,
    )  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """The weights of a linear layer: weight [N, K], scale float32 [N] or None, bias float32 [N] or None."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True)
class Quantiser:
    """Quantises a float output to eight bits: round(x * inverse) + zero. inverse: float32 [N]."""

    inverse: Tensor
    zero: int


def inverse_and_zero(quantiser: Quantiser | None) -> tuple[Tensor | None, int]:
    """The arguments `inverse` and `zero` of a kernel; None and 0 without a quantiser."""
    return (quantiser.inverse, quantiser.zero) if quantiser else (None, 0)


def linear(
    name: str,
    a: Tensor,
    weights: Weights,
    out: Tensor,
    tile: Tile,
    *,
    residual: Tensor | None = None,
    act: str = "none",
    quantiser: Quantiser | None = None,
    pdl: bool = False,
) -> Launch:
    """The launch of out [M, N] = act(a [M, K] @ weight.T * scale + bias + residual), quantised by `quantiser` if out has eight bits.

    With tile.split > 1, out is float32 [split, M, N] and receives the partial sums of a @ weight.T * scale;
    `rows.residual_norm` adds bias and residual and applies the norm.
    """
    (m, k), n, split = a.shape, weights.weight.shape[0], tile.split
    parts = split > 1
    bias, scale = None if parts else weights.bias, weights.scale
    constants = {"N": n, "K": k, "SCALED": scale is not None, "BIAS": bias is not None, "ACT": act}
    constants |= {"RESIDUAL": residual is not None, "LIMIT": limit_of(out.dtype), "GROUP": GROUP}
    constants |= {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "SPLIT": split}
    constants |= {"STAGES": tile.stages, "WHOLE": tile.whole}
    tiles = -(-m // tile.rows) * -(-n // tile.columns)
    inverse, zero = inverse_and_zero(quantiser)
    return Launch(
        name=name,
        kernel=gemm,
        grid=(tiles, split),
        arguments=(a, weights.weight, scale, bias, residual, inverse, out, zero, m),
        constants=constants,
        constant_bytes=bytes_of(weights.weight, scale, bias),
        moved_bytes=bytes_of(a, out, residual),
        flops=2 * m * n * k,
        warps=tile.warps,
        stages=tile.stages,
        pdl=pdl,
    )


SHAPES = ((16, 32, 4), (32, 32, 4), (64, 32, 4), (64, 64, 4), (128, 64, 4), (128, 128, 8), (128, 256, 8))
# Largest number of values of a tile whose epilogues fit a thread's registers. A larger tile keeps up to 352 bytes per thread in
# local memory, so it is used only if tuning measured that it is faster.
UNSPILLED = 128 * 128
SPLITS = (1, 2, 4, 8)
MULTIPROCESSORS = 132  # of an H100
# Datasheet rates of an H100 per multiprocessor and microsecond: bytes from L2, and 8-bit FLOPs.
L2_BYTES = 41e3
FLOPS = 15e6


def default_tile(m: int, n: int, k: int, dtype: torch.dtype, splits: bool) -> Tile:
    """The tile with the least estimated time on an H100, for shapes that were not tuned.

    splits: whether K may be split. See `estimate`.
    """
    width = dtype.itemsize
    depth = min(128 // width, max(32, triton.next_power_of_2(k)))
    fit = [tile for tile in candidates(m, k, depth, splits) if tile.rows * tile.columns <= UNSPILLED]
    return min(fit, key=lambda tile: estimate(tile, m, n, k, width))


def early_tile(m: int, n: int, k: int, dtype: torch.dtype, splits: bool) -> Tile | None:
    """The `whole` tile with the most programs in at most one wave; ties go to the fewest shares of K. None if no tile fits.

    Its shared memory must fit together with that of the previous kernel. GEMMs followed by a norm alternate with GEMMs that
    are not, and 96 and 128 KB fit together.
    """
    most_shared = (96 if splits else 128) << 10
    fits = {}
    for rows, columns in ((64, 64), (128, 64)):
        for split in SPLITS if splits else SPLITS[:1]:
            share = k // split
            tile = Tile(rows, columns, share, split, 8, 1, whole=True)
            programs = -(-m // rows) * -(-n // columns) * split
            is_power = share * split == k and share & (share - 1) == 0 and share >= 32
            if is_power and programs <= MULTIPROCESSORS and tile.shared(dtype.itemsize) <= most_shared:
                fits[tile] = programs, -split
    return max(fits, key=lambda tile: fits[tile], default=None)


def estimate(tile: Tile, m: int, n: int, k: int, width: int) -> float:
    """Estimated microseconds of a GEMM with a tile, to compare tiles and not to predict times. width: bytes of a value.

    The model has waves of programs, each limited by the bytes that it reads or by its FLOPs. It adds the partial sums that a
    split GEMM writes and a norm reads.
    """
    waves = -(-(-(-m // tile.rows) * -(-n // tile.columns) * tile.split) // MULTIPROCESSORS)
    share = waves * k / tile.split
    sums = 8 * tile.split * m * n / MULTIPROCESSORS / L2_BYTES if tile.split > 1 else 0.0
    reads = share * (tile.rows + tile.columns) * width / L2_BYTES
    return sums + max(reads, share * 2 * tile.rows * tile.columns * width / FLOPS)


def candidates(m: int, k: int, depth: int, splits: bool) -> list[Tile]:
    """Tiles that suit a shape: less than twice as high as it has rows, and with at least two steps of `depth` in a share of K."""
    highest = max(16, triton.next_power_of_2(m))
    return [
        Tile(rows, columns, depth, split, warps, 3 if columns == 256 else 4)
        for rows, columns, warps in SHAPES
        if rows <= highest
        for split in (SPLITS if splits else SPLITS[:1])
        if split == 1 or k >= 2 * depth * split
    ]
