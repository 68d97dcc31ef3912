"""Times each kernel of one layer in its place, after all kernels before it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

import torch

from buzzer.engine.fused.lowering import AnyLaunch, Program, runs_on
from buzzer.engine.fused.tune import Form, random_program
from buzzer.engine.fused.weights import EncoderWeights, random
from buzzer.engine.kernels.facts import Facts
from buzzer.engine.kernels.offline import floor
from buzzer.engine.kernels.timing import capture, in_order, replays, require_gpu
from buzzer.engine.kernels.tune import Tuned
from buzzer.errors import UnsupportedError

T = TypeVar("T")
ROUNDS = 20  # an even number: half of them measure the longest prefix first
REPLAYS = 8  # of each prefix in a round


@dataclass(frozen=True)
class MarginalTime(Facts):
    """By how many microseconds a kernel lengthens the graph that ends with it, with a cold L2 cache.

    kernel: its name; "layer" and "program" are the sums of a layer and of all kernels.  spread_us: the range of the middle half of
    the rounds.  floor_us: least time on an H100.  A kernel of a dependent launch overlaps with the one before it, so its time can
    be less than the time of the kernel alone.
    """

    kernel: str
    us: float
    spread_us: float
    floor_us: float


def layer_times(form: Form, tokens: int, mode: str) -> Iterator[MarginalTime]:
    """The time of each kernel of the middle layer, with tuned tiles, then of the layer and of the whole program.

    Raises UnsupportedError for the persistent mode, without a GPU, and for an encoder that the mode cannot run.
    """
    if mode == "persistent":
        raise UnsupportedError(
            "mode persistent is one kernel, whose parts have no times", "use another --mode"
        )
    weights, program = tuned_program(form, tokens, mode)
    bits = 8 * (weights.eight or weights.dtype).itemsize
    yield from marginal_times(program, middle_layer(weights), bits)


def tuned_program(form: Form, tokens: int, mode: str) -> tuple[EncoderWeights, Program]:
    """Random weights, and their program with tuned tiles. Raises UnsupportedError without a GPU that can run the mode."""
    require_gpu()
    if not runs_on(mode, torch.cuda.get_device_capability()):
        raise UnsupportedError(f"mode {mode} needs compute capability 9.0", "--mode plain")
    weights = random(*form, "cuda")
    return weights, random_program(weights, tokens, Tuned.load("cuda"), mode)


def middle_layer(weights: EncoderWeights) -> str:
    """With what the names of the middle layer's kernels begin."""
    return f"layer {len(weights.layers) // 2} "


def marginal_times(program: Program, layer: str, bits: int) -> Iterator[MarginalTime]:
    """The times of the kernels whose name begins with `layer`, of the layer, and of the program. bits: of an operand.

    Each prefix of the launches that ends before or in the layer is a CUDA graph. A kernel's time is the difference between the graph
    that ends with it and the one that ends before it.
    """
    launches = program.launches
    inside = [at for at, launch in enumerate(launches) if launch.name.startswith(layer)]
    first, end = inside[0], inside[-1] + 1
    lengths = [*range(first, end + 1), len(launches)]
    graphs = [capture(in_order(launches[:length])) for length in lengths]
    rows = interleaved(graphs, lambda graph: median(replays(graph, REPLAYS, cold=True)), ROUNDS)
    for at in range(first, end):
        name = launches[at].name.removeprefix(layer)
        yield marginal(name, rows, at - first, at - first + 1, launches[at : at + 1], bits)
    yield marginal("layer", rows, 0, end - first, launches[first:end], bits)
    yield marginal("program", [[0.0, row[-1]] for row in rows], 0, 1, launches, bits)


def interleaved(graphs: Sequence[T], measure: Callable[[T], float], rounds: int) -> list[list[float]]:
    """The time of every graph in each round, in the order of `graphs`.

    Every other round measures the last graph first, so that a steady drift of the clock lengthens a difference in one round and
    shortens it in the next.
    """
    rows = []
    for number in range(rounds):
        backwards = number % 2 == 1
        times = [measure(graph) for graph in (reversed(graphs) if backwards else graphs)]
        rows.append(times[::-1] if backwards else times)
    return rows


def marginal(
    name: str,
    rows: Sequence[Sequence[float]],
    before: int,
    after: int,
    launches: Sequence[AnyLaunch],
    bits: int,
) -> MarginalTime:
    """The median, over the rounds, of the difference between two graphs of the same round."""
    differences = [row[after] - row[before] for row in rows]
    low, _, high = quantiles(differences, n=4)
    least = floor(sum(x.constant_bytes for x in launches), sum(x.flops for x in launches), bits)
    return MarginalTime(name, round(median(differences), 2), round(high - low, 2), round(least, 3))
