"""Tunes the fused backend for an encoder's shape on this machine's GPU."""

from collections.abc import Iterator
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from buzzer.engine.infer.fused_plan import Lowering
from buzzer.engine.infer.fused_weights import EncoderWeights, random
from buzzer.engine.kernels.timing import capture, gpu_name, replays, require_gpu
from buzzer.engine.kernels.tune import Tuned, cache, encoder_shapes, tune

REPLAYS = 100


def tune_encoder(
    layers: int, size: int, wide: int, heads: int, precision: str, tokens: int
) -> Iterator[dict[str, Any]]:
    """Tiles of its four GEMMs, then programmatic dependent launch or not; each stored as soon as it is known.

    Raises UnsupportedError without a GPU.
    """
    require_gpu()
    path, kept = cache() / f"{gpu_name()}.json", Tuned.load("cuda")
    weights = random(layers, size, wide, heads, precision, "cuda")
    for shape, tile, taken in tune(
        encoder_shapes(tokens, size, wide, weights.eight or weights.dtype), kept, path
    ):
        yield {"shape": str(shape), "tile": asdict(tile), "us": round(taken, 2)}
    taken_by = {pdl: cold_microseconds(weights, tokens, kept, pdl) for pdl in (False, True)}
    kept.pdl = torch.cuda.get_device_capability() >= (9, 0) and taken_by[True] < taken_by[False]
    kept.write(path)
    yield {
        "whole_us": round(taken_by[False], 1),
        "whole_with_pdl_us": round(taken_by[True], 1),
        "stored": str(path),
    }


def cold_microseconds(weights: EncoderWeights, tokens: int, kept: Tuned, pdl: bool) -> float:
    """Median device time of a cold graph launch of the encoder."""
    if pdl and torch.cuda.get_device_capability() < (9, 0):
        return float("inf")
    program = Lowering(weights, tokens, 1, kept.tile, pdl).program("none", False)
    inputs = program.inputs
    inputs.ids[0], inputs.ids[1] = (
        torch.randint(0, len(weights.tables[0]), (tokens,)),
        torch.arange(tokens) % 512,
    )
    inputs.spans[1] = tokens
    return median(replays(capture(program.run), REPLAYS, cold=True))
