# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""All layers of an encoder in one persistent kernel: one program per multiprocessor, and barriers in place of launches.

A launch inside a CUDA graph takes longer than a barrier. A program that has finished its share prefetches its next weights
into the L2 cache while it waits (Hazy Research, "Look Ma, No Bubbles", 2025; Triton-distributed's MegaTritonKernel).
"""

import math
from dataclasses import dataclass

from torch import Tensor

from buzzer.engine.kernels.attention import attention_block, blocks, bounds_of
from buzzer.engine.kernels.gemm import Tile, gemm_tile, prefetch_tile, vectors_of
from buzzer.engine.kernels.jit import (
    SPINS,
    Launch,
    arrive,
    bytes_of,
    kernel,
    limit_of,
    tl,
    triton,
    wait_for_all,
    wait_for_previous,
)
from buzzer.engine.kernels.rows import norm_row, row_vectors

LOOKS = tl.constexpr(SPINS)


@triton.jit
def turns(count):
    """How many of `count` items this program processes if they are distributed round-robin."""
    return tl.cdiv(count - tl.program_id(0), tl.num_programs(0))


@triton.jit
def share_of_gemm(
    a,
    w,
    scale,
    bias,
    inverse,
    out,
    zero,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    ACT: tl.constexpr,
    LIMIT: tl.constexpr,
    TILE: tl.constexpr,
):
    """This program's tiles of a GEMM; TILE is rows, columns, depth, split, stages."""
    row_tiles = tl.cdiv(M, TILE[0])
    column_tiles: tl.constexpr = (N + TILE[1] - 1) // TILE[1]
    for turn in range(turns(row_tiles * column_tiles * TILE[3])):
        item = tl.program_id(0) + turn * tl.num_programs(0)
        column_tile = item // row_tiles % column_tiles
        scales, biases, inverses = vectors_of(
            scale, bias, inverse, column_tile, N, TILE[1], SCALED, BIAS, LIMIT
        )
        gemm_tile(
            a, w, w, scales, biases, inverses, None, out, zero, M, item % row_tiles, column_tile,
            item // row_tiles // column_tiles,
            N, K, SCALED, BIAS, False, ACT, LIMIT, TILE[0], TILE[1], TILE[2], TILE[3], TILE[4], False,
        )  # fmt: skip


@triton.jit
def prefetch_share(w, M, N: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr):
    """Start loading the weights of this program's first tile into the L2 cache."""
    row_tiles = tl.cdiv(M, TILE[0])
    column_tiles: tl.constexpr = (N + TILE[1] - 1) // TILE[1]
    item = tl.program_id(0)
    if item < row_tiles * column_tiles * TILE[3]:
        part = item // row_tiles // column_tiles
        prefetch_tile(w, item // row_tiles % column_tiles, part, N, K, TILE[1], TILE[2], TILE[3])


@triton.jit
def share_of_norm(
    parts,
    bias,
    residual,
    gamma,
    beta,
    inverse,
    out,
    eight,
    zero,
    eps,
    M,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """This program's rows of a norm."""
    columns = tl.arange(0, BLOCK)
    g, b, biases, inverses = row_vectors(gamma, beta, bias, inverse, columns, columns < N, True, LIMIT)
    for turn in range(turns(M)):
        row = tl.program_id(0) + turn * tl.num_programs(0)
        norm_row(
            parts, 1.0, g, b, biases, inverses, residual, out, eight, zero, eps, M, row,
            N, BLOCK, SPLIT, False, True, True, LIMIT,
        )  # fmt: skip


@kernel
def layers(
    even,  # states [M, SIZE]: of the embedding at the start, of the last layer at the end
    even8,  # `even` in eight bits; eight-bit arguments are unused if LIMIT is 0
    odd,  # states [M, SIZE] between the two halves of a layer
    odd8,
    qkv,  # [M, 3 * SIZE]
    context,  # [M, SIZE], in eight bits where LIMIT is not 0
    parts,  # float32 [most shares, M, SIZE]
    wide,  # [M, WIDE], in eight bits where LIMIT is not 0
    spans,  # int32 [2, M], as in `attention`
    qkv_w,  # weights [layers, N, K], scales and biases float32 [layers, N], as in `gemm`
    qkv_scale,
    qkv_bias,
    out_w,
    out_scale,
    out_bias,
    up_w,
    up_scale,
    up_bias,
    down_w,
    down_scale,
    down_bias,
    qkv_inverse,  # 1 / scale of each GEMM's input, float32 [layers + 1, K]; only qkv_inverse uses its last row
    out_inverse,
    up_inverse,
    down_inverse,
    zeros,  # int32 [layers + 1, 4], zero points of the GEMMs' inputs
    first_gamma,  # float32 [layers, SIZE]
    first_beta,
    second_gamma,
    second_beta,
    count,  # int32 [1], arrivals at the barriers; 0 at the start and at the end
    done,  # int32 [1], programs that have finished; 0 at the start and at the end
    gave_up,  # int32 [1], how many waits timed out
    eps,
    factor,
    M,
    LAYERS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    HEADS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    ACT: tl.constexpr,
    LIMIT: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    QKV: tl.constexpr,
    OUT: tl.constexpr,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    PDL: tl.constexpr,
):
    """In each phase a program computes its share of tiles, blocks or rows, then waits for all other programs."""
    wait_for_previous(PDL)
    width: tl.constexpr = SIZE // HEADS
    scaled: tl.constexpr = LIMIT != 0
    programs = tl.num_programs(0)
    target = 0
    x = even8 if scaled else even
    y = odd8 if scaled else odd
    for layer in range(LAYERS):
        share_of_gemm(
            x, qkv_w, qkv_scale, qkv_bias, None, qkv, 0, M, 3 * SIZE, SIZE, scaled, True, "none", 0, QKV
        )
        arrive(count)
        prefetch_share(out_w, M, SIZE, SIZE, OUT)
        target += programs
        wait_for_all(count, gave_up, target, LOOKS)

        row_blocks = tl.cdiv(M, ROWS)
        for turn in range(turns(row_blocks * HEADS)):
            item = tl.program_id(0) + turn * programs
            block, head = item % row_blocks, item // row_blocks
            first, last, inverses = bounds_of(spans, out_inverse, M, block, head, width, PADDED, ROWS, LIMIT)
            attention_block(
                qkv, first, last, inverses, None, context, tl.load(zeros + 1), factor, M, block, head,
                HEADS, width, PADDED, ROWS, KEYS, 0, False, LIMIT, False,
            )  # fmt: skip
        arrive(count)
        target += programs
        wait_for_all(count, gave_up, target, LOOKS)

        share_of_gemm(
            context, out_w, out_scale, None, None, parts, 0, M, SIZE, SIZE, scaled, False, "none", 0, OUT
        )
        arrive(count)
        prefetch_share(up_w, M, WIDE, SIZE, UP)
        target += programs
        wait_for_all(count, gave_up, target, LOOKS)

        share_of_norm(
            parts, out_bias, even, first_gamma, first_beta, up_inverse, odd, odd8, tl.load(zeros + 2), eps, M,
            SIZE, BLOCK, OUT[3], LIMIT,
        )  # fmt: skip
        arrive(count)
        target += programs
        wait_for_all(count, gave_up, target, LOOKS)

        share_of_gemm(
            y, up_w, up_scale, up_bias, down_inverse, wide, tl.load(zeros + 3), M, WIDE, SIZE, scaled, True, ACT,
            LIMIT, UP,
        )  # fmt: skip
        arrive(count)
        prefetch_share(down_w, M, SIZE, WIDE, DOWN)
        target += programs
        wait_for_all(count, gave_up, target, LOOKS)

        share_of_gemm(
            wide, down_w, down_scale, None, None, parts, 0, M, SIZE, WIDE, scaled, False, "none", 0, DOWN
        )
        qkv_w += 3 * SIZE * SIZE
        out_w += SIZE * SIZE
        up_w += WIDE * SIZE
        down_w += SIZE * WIDE
        qkv_bias += 3 * SIZE
        up_bias += WIDE
        zeros += 4
        if scaled:
            qkv_scale += 3 * SIZE
            out_scale += SIZE
            up_scale += WIDE
            down_scale += SIZE
            qkv_inverse += SIZE
            out_inverse += SIZE
            up_inverse += SIZE
            down_inverse += WIDE
        arrive(count)
        if layer + 1 < LAYERS:
            prefetch_share(qkv_w, M, 3 * SIZE, SIZE, QKV)
        target += programs
        wait_for_all(count, gave_up, target, LOOKS)

        share_of_norm(
            parts, down_bias, odd, second_gamma, second_beta, qkv_inverse, even, even8, tl.load(zeros), eps, M,
            SIZE, BLOCK, DOWN[3], LIMIT,
        )  # fmt: skip
        out_bias += SIZE
        down_bias += SIZE
        first_gamma += SIZE
        first_beta += SIZE
        second_gamma += SIZE
        second_beta += SIZE
        arrive(count)
        target += programs
        wait_for_all(count, gave_up, target, LOOKS)

    # When all programs have been counted here, all have left the last barrier. The last one resets the counters.
    left = tl.atomic_add(done, 1, sem="acq_rel")
    if left == programs - 1:
        tl.store(count, 0)
        tl.store(done, 0)


@dataclass(frozen=True)
class Stacked:
    """The weights of all layers, one tensor per kind with the layer as its first axis; see the parameters of `layers`."""

    weights: tuple[Tensor, Tensor, Tensor, Tensor]  # query-key-value, out, up, down
    scales: tuple[Tensor | None, ...]
    biases: tuple[Tensor, ...]
    inverses: tuple[Tensor | None, ...]
    zeros: Tensor
    norms: tuple[Tensor, Tensor, Tensor, Tensor]
    eps: float


@dataclass(frozen=True)
class Buffers:
    """The buffers between phases; see the parameters of `layers`. counters: int32 [3], count, done and gave_up."""

    even: Tensor
    even8: Tensor | None
    odd: Tensor
    odd8: Tensor | None
    qkv: Tensor
    context: Tensor
    parts: Tensor
    wide: Tensor
    counters: Tensor


def encoder_layers(
    name: str,
    stacked: Stacked,
    buffers: Buffers,
    spans: Tensor,
    heads: int,
    act: str,
    tiles: tuple[Tile, Tile, Tile, Tile],
    programs: int,
) -> Launch:
    """The launch of all layers.

    spans: as in `self_attention`.  tiles: the tiles of the GEMMs qkv, out, up and down.  programs: at most the number of
    multiprocessors, because all programs must be resident.
    """
    m, size = buffers.even.shape
    count, wide, width = len(stacked.weights[0]), buffers.wide.shape[1], size // heads
    b = buffers
    linears = [t for each in zip(stacked.weights, stacked.scales, stacked.biases, strict=True) for t in each]
    states = (b.even, b.even8, b.odd, b.odd8, b.qkv, b.context, b.parts, b.wide, spans)
    scalars = (stacked.eps, math.log2(math.e) / math.sqrt(width), m)
    counters = (b.counters[0:1], b.counters[1:2], b.counters[2:3])
    cuts = {
        key: (tile.rows, tile.columns, tile.depth, tile.split, tile.stages)
        for key, tile in zip(("QKV", "OUT", "UP", "DOWN"), tiles, strict=True)
    }
    rows, keys = blocks(m, heads)
    constants = {"LAYERS": count, "SIZE": size, "WIDE": wide, "HEADS": heads, "ACT": act}
    constants |= {"ROWS": rows, "KEYS": keys}
    constants |= {"PADDED": max(16, triton.next_power_of_2(width)), "BLOCK": triton.next_power_of_2(size)}
    gemms = 2 * m * sum(w.shape[1] * w.shape[2] for w in stacked.weights)
    return Launch(
        name=name,
        kernel=layers,
        grid=(programs,),
        arguments=(*states, *linears, *stacked.inverses, stacked.zeros, *stacked.norms, *counters, *scalars),
        constants=constants | cuts | {"LIMIT": limit_of(b.wide.dtype)},
        constant_bytes=bytes_of(*stacked.weights, *stacked.scales, *stacked.biases, *stacked.norms),
        moved_bytes=count * bytes_of(b.even, b.even8, b.odd, b.odd8, b.qkv, b.context, b.parts, b.wide),
        flops=count * (gemms + 4 * m * m * size),
        warps=max(tile.warps for tile in tiles),
        cooperative=True,
    )
