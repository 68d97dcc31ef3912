"""Tunes the fused backend for an encoder's shape on this machine's GPU."""

import time
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import asdict, dataclass
from math import inf, isfinite, nan
from statistics import median
from typing import Any

import torch

from buzzer import caches
from buzzer.engine.fused.lowering import DEPENDENT, MODES, Lowering, Program, program_key
from buzzer.engine.fused.weights import EIGHTS, FLOATS, EncoderWeights, random
from buzzer.engine.kernels.ahead import Ahead
from buzzer.engine.kernels.jit import Launch, triton
from buzzer.engine.kernels.timing import capture, gpu_name, replays, require_gpu
from buzzer.engine.kernels.tune import Tuned, encoder_shapes, tune

REPLAYS = 100
ERROR = 0.05  # relative; states are rounded at other places, and eight-bit steps are coarse
Form = tuple[int, int, int, int, str]  # layers, size, wide, heads, precision


def tune_encoder(form: Form, tokens: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Tiles of its four GEMMs, then the fastest mode whose output is right; each stored as soon as it is known.

    Nothing new is begun after that many seconds. Raises UnsupportedError without a GPU.
    """
    require_gpu()
    until = time.monotonic() + seconds
    path, kept = caches.kernels() / f"{gpu_name()}.json", Tuned.load("cuda")
    shared = triton.runtime.driver.active.utils.get_device_properties(0)["max_shared_mem"]
    major, minor = torch.cuda.get_device_capability()
    _, size, wide, _, precision = form
    shapes = encoder_shapes(tokens, size, wide, EIGHTS.get(precision) or FLOATS[precision])
    with Ahead(10 * major + minor, shared) as ahead:
        for choice in tune(shapes, kept, path, ahead, shared, until):
            yield choice.facts()
        modes = [mode for mode in MODES if mode not in DEPENDENT or major >= 9]
        compiling = [ahead.start(launches_of, form, tokens, kept, mode) for mode in modes]
        weights, best = random(*form, "cuda"), inf
        program = program_key(weights, tokens)
        for mode, compiled in zip(modes, compiling, strict=True):
            if not wait([compiled], max(0.0, until - time.monotonic())).done:
                break
            found = measured(weights, tokens, kept, mode)
            yield {"mode": mode} | found.facts()
            if found.refused is None and found.microseconds is not None and found.microseconds < best:
                best, kept.modes[program] = found.microseconds, mode
                kept.write(path)
    yield {"program": program, "taken": kept.mode(program), "in_time": time.monotonic() < until}


@dataclass(frozen=True)
class Measured:
    """Median device time of a cold graph launch, the output's relative distance from plain launches', and why the mode is
    not to be taken; None: unknown, or no such reason."""

    microseconds: float | None = None
    error: float | None = None
    refused: str | None = None

    def facts(self) -> dict[str, Any]:
        """What is known, for people and JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def measured(weights: EncoderWeights, tokens: int, kept: Tuned, mode: str) -> Measured:
    """A mode other than plain that asks for more than the GPU has, or whose barriers are given up, is refused."""
    plain = made(weights, tokens, kept, "plain")
    plain.run()
    try:
        program = made(weights, tokens, kept, mode)
        program.run()
        program.check()  # before it is run a hundred times
        graph = capture(program.run)
        times = replays(graph, REPLAYS, cold=True)
        program.output.fill_(nan)
        graph.replay()
        program.check()
    except (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError, RuntimeError) as reason:
        if mode == "plain":
            raise
        return Measured(refused=f"{type(reason).__name__}: {reason}")
    want, got = plain.output.double(), program.output.double()
    error = float((got - want).norm() / want.norm())
    right = isfinite(error) and error < ERROR
    known = error if isfinite(error) else None
    return Measured(median(times), known, None if right else "its output is not that of plain launches")


def launches_of(form: Form, tokens: int, kept: Tuned, mode: str) -> list[Launch]:
    """What is measured, without values: for compilation ahead."""
    return Lowering(random(*form, "meta"), tokens, 1, kept.tile, mode).program("none", False).launches


def made(weights: EncoderWeights, tokens: int, kept: Tuned, mode: str) -> Program:
    """A program on random tokens of one sequence."""
    program = Lowering(weights, tokens, 1, kept.tile, mode).program("none", False)
    torch.manual_seed(0)
    program.inputs.ids[0] = torch.randint(0, len(weights.tables[0]), (tokens,))
    program.inputs.ids[1] = torch.arange(tokens) % len(weights.tables[1])
    program.inputs.spans[1] = tokens
    return program
