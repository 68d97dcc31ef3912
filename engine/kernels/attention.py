# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Self-attention over packed sequences. Padding is computed only inside a block."""

import math

from torch import Tensor

from buzzer.engine.kernels.gemm import MULTIPROCESSORS, Quantiser, inverse_and_zero
from buzzer.engine.kernels.jit import (
    Launch,
    bytes_of,
    kernel,
    let_next_start,
    limit_of,
    quantised,
    tl,
    triton,
    wait_for_previous,
)


@triton.jit
def bounds_of(
    spans,
    inverse,
    M,
    block,
    head,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """For each of ROWS tokens its first key and the key after its last, and the inverse scales of a head's columns. No kernel
    writes them, so they may be loaded before any wait."""
    rows = block * ROWS + tl.arange(0, ROWS)
    wide = tl.arange(0, PADDED)
    first = tl.load(spans + rows, mask=rows < M, other=2147483647)
    last = tl.load(spans + M + rows, mask=rows < M, other=0)
    inverses = tl.load(inverse + head * WIDTH + wide, mask=wide < WIDTH, other=0.0) if LIMIT else 1.0
    return first, last, inverses


@triton.jit
def attention_block(
    qkv,
    first,
    last,
    inverses,
    distances,
    out,
    zero,
    factor,
    M,
    block,
    head,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    REACH: tl.constexpr,
    CAUSAL: tl.constexpr,
    LIMIT: tl.constexpr,
    ONE: tl.constexpr,
):
    """Compute ROWS tokens of one head. first, last and inverses are from `bounds_of`; the other arguments are as in `attention`.

    softmax(q k' / sqrt(WIDTH)) v with a running maximum (Milakov and Gimelshein, arXiv 1805.02867, algorithm 3), as in
    FlashAttention (Dao et al., arXiv 2205.14135).
    """
    size: tl.constexpr = HEADS * WIDTH
    rows = block * ROWS + tl.arange(0, ROWS)
    wide = tl.arange(0, PADDED)
    in_head = wide < WIDTH
    there = rows < M
    base = qkv + head * WIDTH + wide
    row_at = rows.to(tl.int64)[:, None] * (3 * size)
    row_there = there[:, None] & in_head[None, :]
    if not ONE:
        q = tl.load(base[None, :] + row_at, mask=row_there, other=0.0)

    highest = tl.full(
        (ROWS,), -1.0e30, tl.float32
    )  # finite, so that a row without keys so far does not give NaN
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, PADDED), tl.float32)
    end = tl.max(last, 0)
    for start in range(tl.min(first, 0), end, KEYS):
        keys = start + tl.arange(0, KEYS)
        key_at = base[None, :] + keys.to(tl.int64)[:, None] * (3 * size)
        loaded = (keys < end)[:, None] & in_head[None, :]
        if ONE:
            # In the loop, so that the copies of queries, keys and values are in flight together: a load before the loop is waited for
            # before its first copies start. The mask, which is always true, keeps the compiler from moving the load out of it.
            true = start + tl.zeros((ROWS, 1), tl.int32) < end
            q = tl.load(base[None, :] + row_at, mask=row_there & true, other=0.0)
        k = tl.load(key_at + size, mask=loaded, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * factor
        own = (keys[None, :] >= first[:, None]) & (keys[None, :] < last[:, None])
        if CAUSAL:
            own = own & (keys[None, :] <= rows[:, None])
        if REACH:
            apart = rows[:, None] - keys[None, :] + REACH - 1
            score += tl.load(distances + head * (2 * REACH - 1) + apart, mask=own, other=0.0)
        score = tl.where(own, score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        shrink = tl.exp2(highest - higher)
        p = tl.exp2(score - higher[:, None])
        weight = weight * shrink + tl.sum(p, 1)
        v = tl.load(key_at + 2 * size, mask=loaded, other=0.0)
        total = tl.dot(p.to(v.dtype), v, total * shrink[:, None], input_precision="ieee")
        highest = higher

    result = total / tl.where(weight > 0.0, weight, 1.0)[:, None]
    columns = head * WIDTH + wide
    if LIMIT:
        result = quantised(result, inverses[None, :], zero, LIMIT)
    cell = rows.to(tl.int64)[:, None] * size + columns[None, :]
    tl.store(out + cell, result.to(out.dtype.element_ty), mask=row_there)


@kernel
def attention(
    qkv,  # [M, 3 * HEADS * WIDTH]: queries, keys and values of a token side by side
    spans,  # int32 [2, M]: for each token, the first token of its sequence and the token after the last
    distances,  # float32 [HEADS, 2 * REACH - 1], log2(e) * the addend of each distance to a score; unused if REACH is 0
    inverse,  # float32 [HEADS * WIDTH], 1 / scale of the output; unused if LIMIT is 0
    out,  # [M, HEADS * WIDTH]
    zero,
    factor,  # log2(e) / sqrt(WIDTH)
    M,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,  # a power of two >= max(16, WIDTH)
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    REACH: tl.constexpr,  # tokens of the longest sequence that `distances` covers
    CAUSAL: tl.constexpr,  # a token attends only to itself and to earlier tokens
    LIMIT: tl.constexpr,
    ONE: tl.constexpr,  # at most KEYS tokens, so one pass
    PDL: tl.constexpr,
):
    """Attention within each sequence.

    A block of rows may contain several sequences. It reads the keys of all of them, and each row masks the keys of other
    sequences. So the launch grid depends only on the number of tokens, and one captured graph works for any lengths.
    """
    let_next_start(PDL)
    block, head = tl.program_id(0), tl.program_id(1)
    first, last, inverses = bounds_of(spans, inverse, M, block, head, WIDTH, PADDED, ROWS, LIMIT)
    wait_for_previous(PDL)
    attention_block(
        qkv, first, last, inverses, distances, out, zero, factor, M, block, head,
        HEADS, WIDTH, PADDED, ROWS, KEYS, REACH, CAUSAL, LIMIT, ONE,
    )  # fmt: skip


def blocks(m: int, heads: int) -> tuple[int, int]:
    """ROWS and KEYS for m tokens.

    If all programs fit in one wave, blocks have few rows, so that there are many programs, and up to 128 keys, so that most
    sequences need one pass. Beyond one wave, blocks have more rows, so that each key is read less often.

    >>> [blocks(m, 16) for m in (16, 128, 256, 16384)]
    [(16, 16), (16, 128), (32, 128), (32, 64)]
    """
    one_wave = -(-m // 32) * heads <= MULTIPROCESSORS
    rows = 16 if -(-m // 16) * heads <= MULTIPROCESSORS else 32
    return rows, min(128 if one_wave else 64, max(16, triton.next_power_of_2(m)))


def self_attention(
    name: str,
    qkv: Tensor,
    spans: Tensor,
    out: Tensor,
    heads: int,
    quantiser: Quantiser | None = None,
    *,
    distances: Tensor | None = None,
    causal: bool = False,
    cut: tuple[int, int] | None = None,
    pdl: bool = False,
) -> Launch:
    """The launch of out [M, H] = attention of each token to its own sequence, from qkv [M, 3 * H] and spans int32 [2, M].

    quantiser: the quantiser of a quantised output.
    distances: float32 [heads, 2 * reach - 1], log2(e) * the term added to a score by distance, from a key `reach - 1` tokens
        after the token to a key `reach - 1` tokens before it; no sequence may be longer than `reach`.
    causal: a token attends only to itself and to earlier tokens.
    cut: rows and keys of a program's block, powers of two >= 16; default: `blocks`.
    """
    m, size = out.shape
    width = size // heads
    padded = max(16, triton.next_power_of_2(width))
    rows, keys = cut or blocks(m, heads)
    inverse, zero = inverse_and_zero(quantiser)
    constants = {
        "HEADS": heads,
        "WIDTH": width,
        "PADDED": padded,
        "ROWS": rows,
        "KEYS": keys,
        "CAUSAL": causal,
        "ONE": m <= keys,
    }
    constants |= {"REACH": 0 if distances is None else (distances.shape[1] + 1) // 2}
    return Launch(
        name=name,
        kernel=attention,
        grid=(-(-m // rows), heads),
        arguments=(qkv, spans, distances, inverse, out, zero, math.log2(math.e) / math.sqrt(width), m),
        constants=constants | {"LIMIT": limit_of(out.dtype)},
        constant_bytes=bytes_of(distances),
        moved_bytes=bytes_of(qkv, spans, out),
        flops=4 * m * m * size,
        stages=2,
        pdl=pdl,
    )
