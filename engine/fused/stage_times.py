"""Times the stages of one layer's CUDA C++ products, by the clocks of their blocks: where the time of a kernel goes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from buzzer.engine.fused.layer_times import middle_layer, tuned_program
from buzzer.engine.fused.lowering import CUDA, AnyLaunch, Program
from buzzer.engine.fused.tune import Form
from buzzer.engine.kernels.cuda.launch import STAMPS, CudaLaunch
from buzzer.engine.kernels.facts import Facts
from buzzer.engine.kernels.timing import capture, in_order, replays
from buzzer.errors import UnsupportedError

REPLAYS = 20
START, READY, WAITED, COPIED, MULTIPLIED, EXCHANGED, STORED, END = range(STAMPS)  # `Stamp` in gemm.cu


@dataclass(frozen=True)
class StageTimes(Facts):
    """The stages of a product: medians over its blocks and over replays with a cold L2 cache, in microseconds.

    multiprocessors: how many have a block of it.  most_on_one: the most blocks of it on one of them.
    early_us: from a block's start until it waits for the previous kernel.  wait_us: that wait.  copies_us: until the activations
    have arrived.  products_us: until all products have ended.  exchange_us: sums are written, and the cluster meets at its barrier.
    sums_us: the sums of the other blocks are read, and the results stored.  end_us: the last barrier of the cluster.
    apart_us: from the end of the first block's wait to the end of the last one's.  whole_us: from the end of the first wait to the
    end of the last block.  handover_us: from the end of the previous kernel's last block to the end of the first wait; None if the
    previous kernel is not such a product.
    """

    kernel: str
    blocks: int
    multiprocessors: int
    most_on_one: int
    early_us: float
    wait_us: float
    copies_us: float
    products_us: float
    exchange_us: float
    sums_us: float
    end_us: float
    apart_us: float
    whole_us: float
    handover_us: float | None = None


def stage_times(form: Form, tokens: int, mode: str) -> Iterator[StageTimes]:
    """The stages of each product of the middle layer. Raises UnsupportedError for modes without such products, and without a
    GPU that can run them."""
    if mode not in CUDA:
        raise UnsupportedError(f"mode {mode} has no CUDA C++ products", "--mode cuda, cuda4 or multicast")
    weights, program = tuned_program(form, tokens, mode)
    yield from traced(program, middle_layer(weights))


def traced(program: Program, layer: str) -> Iterator[StageTimes]:
    """The stages of the products whose name begins with `layer`, in a graph of all launches."""
    launches = [stamped(x) if x.name.startswith(layer) else x for x in program.launches]
    products = {at: x for at, x in enumerate(launches) if isinstance(x, CudaLaunch) and x.stamps is not None}
    graph = capture(in_order(launches))
    kept: dict[int, list[NDArray[np.uint32]]] = {at: [] for at in products}
    for _ in range(REPLAYS):
        replays(graph, 1, cold=True)
        for at, product in products.items():
            assert product.stamps is not None
            kept[at].append(product.stamps.cpu().numpy().view(np.uint32))
    stamps = {at: np.stack(each) for at, each in kept.items()}
    for at, product in products.items():
        yield stages(product.name.removeprefix(layer), stamps[at], stamps.get(at - 1))


def stamped(launch: AnyLaunch) -> AnyLaunch:
    """The launch of a CUDA C++ product with room for its blocks' times; any other launch as it is."""
    if not isinstance(launch, CudaLaunch):
        return launch
    shape = (*launch.grid, STAMPS + 1, 2)
    return replace(launch, stamps=torch.zeros(shape, dtype=torch.int32, device=launch.activations.device))


def stages(kernel: str, stamps: NDArray[np.uint32], previous: NDArray[np.uint32] | None = None) -> StageTimes:
    """The stages from the times of blocks, [replays, blocks, STAMPS + 1, 2]: cycles and nanoseconds, then the multiprocessor.
    previous: those of the kernel before.

    Stages of a block are differences of its multiprocessor's cycles, which are exact. Nanoseconds, which may have coarse steps, give
    the length of a cycle, and compare blocks.
    """
    cycles, times = (np.diff(stamps[:, :, :STAMPS, unit], axis=2).astype(np.float64) for unit in (0, 1))
    us_per_cycle = times.sum() / cycles.sum() / 1e3
    early, wait, copies, products, exchange, sums, end = (
        round(float(np.median(cycles[:, :, stage]) * us_per_cycle), 3) for stage in range(STAMPS - 1)
    )
    zero = stamps[:, :1, WAITED, 1]
    waited, ended = since(stamps[:, :, WAITED, 1], zero), since(stamps[:, :, END, 1], zero)
    first = waited.min(1)
    handover = None if previous is None else first - since(previous[:, :, END, 1], zero).max(1)
    places = [np.unique(row, return_counts=True)[1] for row in stamps[:, :, STAMPS, 0]]
    return StageTimes(
        kernel, stamps.shape[1], int(median(map(len, places))), int(median(row.max() for row in places)),
        early, wait, copies, products, exchange, sums, end,
        apart_us=median_us(waited.max(1) - first), whole_us=median_us(ended.max(1) - first),
        handover_us=None if handover is None else median_us(handover),
    )  # fmt: skip


def since(times: NDArray[np.uint32], zero: NDArray[np.uint32]) -> NDArray[np.int32]:
    """Nanoseconds after `zero`, or before it; the times may wrap."""
    return (times - zero).view(np.int32)


def median_us(nanoseconds: NDArray[np.int32]) -> float:
    """The median in microseconds."""
    return round(float(np.median(nanoseconds)) / 1e3, 3)
