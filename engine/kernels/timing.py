"""Device time of launches inside a CUDA graph: a pair of events around each replay, with a cold or warm L2 cache."""

import re
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from buzzer.engine.device import require_torch_cuda
from buzzer.errors import UnsupportedError

COLD_BYTES = 256 << 20  # written between replays: five times an H100's L2


def require_gpu() -> None:
    """Raises UnsupportedError without a CUDA device, and in a process whose kernels are interpreted."""
    from buzzer.engine.kernels.jit import interpreted

    require_torch_cuda()
    if interpreted():
        raise UnsupportedError("kernels are interpreted in this process", "unset TRITON_INTERPRET")


def gpu_name() -> str:
    """The GPU's name as a file name, for example nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def in_order(launches: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """A function that starts these launches."""

    def run() -> None:
        for launch in launches:
            launch()

    return run


def capture(run: Callable[[], None]) -> Any:
    """A torch.cuda.CUDAGraph of the launches of `run`. First calls `run` once on a side stream, so that kernels are compiled."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def replays(graph: Any, count: int, cold: bool) -> list[float]:
    """The time of each of `count` replays in microseconds. Replays do not overlap; with `cold`, L2 is overwritten before each."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    overwrite = torch.empty(COLD_BYTES, dtype=torch.uint8, device="cuda") if cold else None
    times = []
    for number in range(count + 3):  # the first three are warm-up
        if overwrite is not None:
            overwrite.fill_(number)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return times[3:]


def microseconds(launches: Sequence[Callable[[], object]], count: int) -> float:
    """Median time in microseconds of one graph of all launches, with a warm L2 cache."""
    return median(replays(capture(in_order(launches)), count, cold=False))
