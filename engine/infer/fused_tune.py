"""Tunes the fused backend for an encoder's shape on this machine's GPU."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import inf, isfinite, nan
from statistics import median
from typing import Any

import torch

from buzzer.engine.infer.fused_plan import MODES, Lowering, Program, text_of
from buzzer.engine.infer.fused_weights import EncoderWeights, random
from buzzer.engine.kernels.timing import capture, gpu_name, replays, require_gpu
from buzzer.engine.kernels.tune import Tuned, cache, encoder_shapes, tune

REPLAYS = 100
ERROR = 0.05  # relative; states are rounded at other places, and eight-bit steps are coarse


def tune_encoder(
    layers: int, size: int, wide: int, heads: int, precision: str, tokens: int
) -> Iterator[dict[str, Any]]:
    """Tiles of its four GEMMs, then the fastest mode whose output is right; each stored as soon as it is known.

    Raises UnsupportedError without a GPU.
    """
    require_gpu()
    path, kept = cache() / f"{gpu_name()}.json", Tuned.load("cuda")
    weights = random(layers, size, wide, heads, precision, "cuda")
    for shape, tile, taken in tune(
        encoder_shapes(tokens, size, wide, weights.eight or weights.dtype), kept, path
    ):
        yield {"shape": str(shape), "tile": asdict(tile), "us": round(taken, 2)}
    found = {mode: measured(weights, tokens, kept, mode) for mode in MODES}
    right = [mode for mode in MODES if found[mode].error < ERROR]
    kept.modes[text_of(weights, tokens)] = min(right, key=lambda mode: found[mode].microseconds)
    kept.write(path)
    yield {mode: asdict(each) for mode, each in found.items()} | {
        "taken": kept.modes[text_of(weights, tokens)]
    }


@dataclass(frozen=True)
class Measured:
    """Median device time of a cold graph launch, and the output's relative distance from plain launches'."""

    microseconds: float
    error: float


def measured(weights: EncoderWeights, tokens: int, kept: Tuned, mode: str) -> Measured:
    """An infinite time for a mode that this GPU has not: before compute capability 9.0, dependent launch."""
    if mode == "pdl" and torch.cuda.get_device_capability() < (9, 0):
        return Measured(inf, inf)
    plain, program = (made(weights, tokens, kept, each) for each in ("plain", mode))
    plain.run()
    graph = capture(program.run)
    times = replays(graph, REPLAYS, cold=True)
    program.output.fill_(nan)
    graph.replay()
    program.check()
    want, got = plain.output.double(), program.output.double()
    error = float((got - want).norm() / want.norm())
    return Measured(median(times), error if isfinite(error) else inf)


def made(weights: EncoderWeights, tokens: int, kept: Tuned, mode: str) -> Program:
    """A program on random tokens of one sequence."""
    program = Lowering(weights, tokens, 1, kept.tile, mode).program("none", False)
    torch.manual_seed(0)
    program.inputs.ids[0] = torch.randint(0, len(weights.tables[0]), (tokens,))
    program.inputs.ids[1] = torch.arange(tokens) % len(weights.tables[1])
    program.inputs.spans[1] = tokens
    return program
