# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Measures this GPU for small-batch encoders: the cost of launches, waves and barriers, and bandwidths."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from buzzer.engine.kernels.facts import Facts
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

KERNELS = 171  # kernels of BERT-Large, with seven per layer
BARRIERS = 1000
REPLAYS = 50
BLOCK = 2048  # values that a program of the bandwidth probe loads at once: four loads of 16 bytes per thread
RESIDENT = (
    8  # its programs per multiprocessor, as many as their registers allow: at least 64 KB are in flight
)


@dataclass(frozen=True)
class GpuFacts(Facts):
    """The measured GPU and the software versions."""

    gpu: str
    torch: str
    cuda: str | None
    multiprocessors: int
    l2_bytes: int


@dataclass(frozen=True)
class LaunchGap(Facts):
    """Microseconds per kernel in a graph of dependent, nearly empty kernels."""

    probe: str
    pdl: bool
    kernels: int
    us_each: float


@dataclass(frozen=True)
class OneWave(Facts):
    """Microseconds of a GEMM with one wave of programs."""

    probe: str
    dtype: str
    programs: int
    us_each: float


@dataclass(frozen=True)
class Bandwidth(Facts):
    """Read bandwidth in GB (1e9 bytes) per second. read_all: whether every value was read."""

    probe: str
    bytes: int
    gb_a_second: float
    read_all: bool


@dataclass(frozen=True)
class GridBarrier(Facts):
    """Microseconds per barrier over all programs. gave_up: how many waits timed out."""

    probe: str
    programs: int
    us_each: float
    gave_up: int


@kernel
def nothing(x, PDL: tl.constexpr):
    """One program that adds 1 to a number, so that consecutive kernels depend on each other."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    tl.store(x, tl.load(x) + 1.0)


@kernel
def read(x, out, PASSES: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Each program sums STEPS blocks, strided by the grid. Together the programs read every value of x PASSES times, bypassing L1.

    The loads have no mask. So each is 16 bytes wide, and all loads of a block are in flight before the first value is added. With a
    mask by a length that the compiler cannot divide by four, each load has 4 bytes, 16 bytes from those of the next thread, and
    L2 sends each sector four times: such a probe read 1,970 GB/s on an H200.

    In each pass a program reads different blocks, because the compiler would move a repeated load out of the loop.
    """
    wait_for_previous(PDL)
    programs = tl.num_programs(0)
    total = tl.zeros((BLOCK,), tl.int32)
    for step in range(PASSES * STEPS):
        column = (tl.program_id(0) + step // STEPS) % programs
        block = (step % STEPS * programs + column).to(tl.int64)
        total += tl.load(x + block * BLOCK + tl.arange(0, BLOCK), cache_modifier=".cg")
    tl.store(out + tl.program_id(0), tl.sum(total, 0))


@kernel
def barriers(count, gave_up, COUNT: tl.constexpr, SPINS: tl.constexpr, PDL: tl.constexpr):
    """COUNT barriers over all programs, which must be resident: arrive at a counter, then poll until all have arrived."""
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
    """A launch of a probe; its bytes and FLOPs are not counted."""
    counts = {"constant_bytes": 0, "moved_bytes": 0, "flops": 0}
    return Launch(
        kernel.__name__, kernel, (grid,), arguments, constants, **counts, pdl=pdl, cooperative=cooperative
    )


def empty(x: torch.Tensor, pdl: bool) -> Launch:
    """One program that adds 1 to x, float32 [1]."""
    return launch(nothing, 1, (x,), pdl)


def reader(x: torch.Tensor, out: torch.Tensor, passes: int) -> Launch:
    """Reads all of x, int32 [steps * programs * BLOCK], `passes` times, and writes each program's sum to out, int32 [programs].

    Raises ValueError for another size of x.
    """
    steps, rest = divmod(len(x), len(out) * BLOCK)
    if rest or not steps:
        raise ValueError(f"{len(x)} values are not a multiple of {len(out)} blocks of {BLOCK}")
    return launch(read, len(out), (x, out), PASSES=passes, STEPS=steps, BLOCK=BLOCK)


def barrier(count: torch.Tensor, gave_up: torch.Tensor, programs: int) -> Launch:
    """BARRIERS barriers over a number of programs; count and gave_up: int32 [1], 0 at the start."""
    return launch(barriers, programs, (count, gave_up), cooperative=True, COUNT=BARRIERS, SPINS=SPINS)


def probes() -> Iterator[Facts]:
    """The GPU's facts, then the result of each probe. Raises UnsupportedError without a GPU."""
    require_gpu()
    properties = torch.cuda.get_device_properties(0)
    sizes = properties.multi_processor_count, properties.L2_cache_size
    yield GpuFacts(gpu_name(), torch.__version__, torch.version.cuda, *sizes)
    for pdl in (False, True) if torch.cuda.get_device_capability() >= (9, 0) else (False,):
        yield launch_gap(pdl)
    for dtype in (torch.float16, torch.float8_e4m3fn, torch.int8):
        yield one_wave(dtype)
    yield bandwidth("l2", properties.L2_cache_size // 4, properties.multi_processor_count, passes=100)
    yield bandwidth("memory", 2 << 30, properties.multi_processor_count, passes=1)
    yield grid_barrier(properties.multi_processor_count)


def timed(launches: list[Launch], cold: bool = False) -> float:
    """Median time in microseconds of one graph of all launches. cold: the L2 cache is overwritten before each replay."""

    def run() -> None:
        for each in launches:
            each()

    return median(replays(capture(run), REPLAYS, cold))


def launch_gap(pdl: bool) -> LaunchGap:
    """Times a graph of dependent, nearly empty kernels."""
    x = torch.zeros(1, device="cuda")
    total = timed([empty(x, pdl)] * KERNELS)
    return LaunchGap("launch gap", pdl, KERNELS, round(total / KERNELS, 3))


def one_wave(dtype: torch.dtype) -> OneWave:
    """Times a GEMM with one wave of programs, in a graph of dependent GEMMs whose weights are in the L2 cache.

    128 programs of 64 by 64, K = 1024: BERT-Large's first feed-forward layer at 128 tokens.
    """
    m, n, k = 128, 4096, 1024
    a, w = (torch.randn(size, k, device="cuda").mul(20).to(dtype) for size in (m, n))
    out = torch.zeros(m, n, dtype=torch.float16, device="cuda")
    scale, bias = torch.full((n,), 1e-3, device="cuda"), torch.zeros(n, device="cuda")
    tile = Tile(64, 64, 128 // dtype.itemsize)
    total = timed([linear("wave", a, Weights(w, scale, bias), out, tile)] * KERNELS)
    return OneWave("one wave", str(dtype), 128, round(total / KERNELS, 3))


def bandwidth(name: str, size: int, multiprocessors: int, passes: int) -> Bandwidth:
    """Times a kernel that reads about `size` bytes `passes` times: from the L2 cache with several passes, from memory with one."""
    programs = multiprocessors * RESIDENT
    steps = max(1, size // (4 * programs * BLOCK))
    x = torch.ones(steps * programs * BLOCK, dtype=torch.int32, device="cuda")
    out = torch.zeros(programs, dtype=torch.int32, device="cuda")
    total = timed([reader(x, out, passes)], cold=passes == 1)
    rate = len(x) * 4 * passes / total / 1e3
    read_all = int(out.sum()) == len(x) * passes
    return Bandwidth(f"{name} bandwidth", len(x) * 4, round(rate, 1), read_all)


def grid_barrier(multiprocessors: int) -> GridBarrier:
    """Times barriers over one program per multiprocessor."""
    count, gave_up = (torch.zeros(1, dtype=torch.int32, device="cuda") for _ in range(2))
    times = []
    launch = barrier(count, gave_up, multiprocessors)
    for _ in range(10):
        count.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        launch()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / BARRIERS)
        if failed := int(gave_up):
            break
    return GridBarrier("grid barrier", multiprocessors, round(median(times), 3), failed)
