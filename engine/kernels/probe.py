# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""What decides the plan of a small-batch encoder, measured on this GPU: launches, waves, bandwidths, barriers."""

from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from buzzer.engine.kernels.gemm import Tile, Weights, linear
from buzzer.engine.kernels.jit import (
    SPINS,
    Launch,
    arrive,
    kernel,
    let_next_start,
    tl,
    wait_for_all,
    wait_for_previous,
)
from buzzer.engine.kernels.timing import capture, gpu_name, replays, require_gpu

KERNELS = 171  # of BERT-Large in a plan of seven kernels a layer
BARRIERS = 1000
REPLAYS = 50


@kernel
def nothing(x, PDL: tl.constexpr):
    """One program that adds 1 to a number, so that kernels depend on each other."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    tl.store(x, tl.load(x) + 1.0)


@kernel
def read(x, out, M, PASSES: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Sums of STEPS blocks a program, strided by the grid: every value of x, PASSES times, past L1.

    A program reads its neighbour's blocks in the next pass: a load of the same address would leave the loop.
    """
    wait_for_previous(PDL)
    programs = tl.num_programs(0)
    total = tl.zeros((BLOCK,), tl.int32)
    for step in range(PASSES * STEPS):
        column = (tl.program_id(0) + step // STEPS) % programs
        block = (step % STEPS * programs + column).to(tl.int64)
        at = block * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(x + at, mask=at < M, other=0, cache_modifier=".cg")
    tl.store(out + tl.program_id(0), tl.sum(total, 0))


@kernel
def barriers(count, gave_up, COUNT: tl.constexpr, SPINS: tl.constexpr, PDL: tl.constexpr):
    """COUNT barriers over all programs, which must all be resident: arrive at a counter, look until all have."""
    for number in range(COUNT):
        arrive(count)
        wait_for_all(count, gave_up, (number + 1) * tl.num_programs(0), SPINS)


def launch(
    kernel: Any,
    grid: int,
    arguments: tuple[Any, ...],
    pdl: bool = False,
    cooperative: bool = False,
    **constants: Any,
) -> Launch:
    counts = {"constant_bytes": 0, "moved_bytes": 0, "flops": 0}
    return Launch(
        kernel.__name__, kernel, (grid,), arguments, constants, **counts, pdl=pdl, cooperative=cooperative
    )


def empty(x: torch.Tensor, pdl: bool) -> Launch:
    return launch(nothing, 1, (x,), pdl)


def reader(x: torch.Tensor, out: torch.Tensor, passes: int) -> Launch:
    """All of int32 `x`, `passes` times, by as many programs as `out` has values."""
    block, programs = 4096, len(out)
    steps = -(-len(x) // (block * programs))
    return launch(read, programs, (x, out, len(x)), PASSES=passes, STEPS=steps, BLOCK=block)


def barrier(count: torch.Tensor, gave_up: torch.Tensor, programs: int) -> Launch:
    return launch(barriers, programs, (count, gave_up), cooperative=True, COUNT=BARRIERS, SPINS=SPINS)


def probes() -> Iterator[dict[str, Any]]:
    """One record a probe. Raises UnsupportedError without a GPU."""
    require_gpu()
    properties = torch.cuda.get_device_properties(0)
    facts = {"multiprocessors": properties.multi_processor_count, "l2_bytes": properties.L2_cache_size}
    yield {"gpu": gpu_name(), "torch": torch.__version__, "cuda": torch.version.cuda, **facts}
    for pdl in (False, True) if torch.cuda.get_device_capability() >= (9, 0) else (False,):
        yield launch_gap(pdl)
    for dtype in (torch.float16, torch.float8_e4m3fn, torch.int8):
        yield one_wave(dtype)
    yield bandwidth("l2", properties.L2_cache_size // 4, properties.multi_processor_count, passes=20)
    yield bandwidth("memory", 2 << 30, properties.multi_processor_count, passes=1)
    yield grid_barrier(properties.multi_processor_count)


def timed(launches: list[Launch], cold: bool = False) -> float:
    """Median microseconds of one graph of the launches."""

    def run() -> None:
        for each in launches:
            each()

    return median(replays(capture(run), REPLAYS, cold))


def launch_gap(pdl: bool) -> dict[str, Any]:
    """Microseconds a kernel in a graph of dependent kernels that do nothing."""
    x = torch.zeros(1, device="cuda")
    taken = timed([empty(x, pdl)] * KERNELS)
    return {"probe": "launch gap", "pdl": pdl, "kernels": KERNELS, "us_each": round(taken / KERNELS, 3)}


def one_wave(dtype: torch.dtype) -> dict[str, Any]:
    """Microseconds a GEMM of one wave of programs, in a graph of dependent ones whose weights lie in L2.

    128 programs of 64 by 64, K = 1024: BERT-Large's first feed-forward layer at 128 tokens.
    """
    m, n, k = 128, 4096, 1024
    a, w = (torch.randn(size, k, device="cuda").mul(20).to(dtype) for size in (m, n))
    out = torch.zeros(m, n, dtype=torch.float16, device="cuda")
    scale, bias = torch.full((n,), 1e-3, device="cuda"), torch.zeros(n, device="cuda")
    tile = Tile(64, 64, 128 // dtype.itemsize)
    taken = timed([linear("wave", a, Weights(w, scale, bias), out, tile)] * KERNELS)
    return {"probe": "one wave", "dtype": str(dtype), "programs": 128, "us_each": round(taken / KERNELS, 3)}


def bandwidth(name: str, size: int, multiprocessors: int, passes: int) -> dict[str, Any]:
    """Bytes a second of reading `size` bytes in one kernel; `passes` times, for what stays in L2."""
    x = torch.ones(size // 4, dtype=torch.int32, device="cuda")
    out = torch.zeros(multiprocessors * 8, dtype=torch.int32, device="cuda")
    taken = timed([reader(x, out, passes)], cold=passes == 1)
    rate = len(x) * 4 * passes / taken / 1e3
    whole = int(out.sum()) == len(x) * passes
    return {
        "probe": f"{name} bandwidth",
        "bytes": len(x) * 4,
        "gb_a_second": round(rate, 1),
        "read_all": whole,
    }


def grid_barrier(multiprocessors: int) -> dict[str, Any]:
    """Microseconds a barrier over one program a multiprocessor."""
    count, gave_up = (torch.zeros(1, dtype=torch.int32, device="cuda") for _ in range(2))
    found = []
    one = barrier(count, gave_up, multiprocessors)
    for _ in range(10):
        count.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        one()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) * 1e3 / BARRIERS)
        if failed := int(gave_up):
            break
    return {
        "probe": "grid barrier",
        "programs": multiprocessors,
        "us_each": round(median(found), 3),
        "gave_up": failed,
    }
