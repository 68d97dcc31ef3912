"""Tunes the fused backend for an encoder's shape on this machine's GPU."""

import time
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from math import inf, isfinite, nan
from statistics import median

import torch
from torch import Tensor

from buzzer import caches
from buzzer.engine.fused.lowering import MODES, AnyLaunch, Lowering, Program, program_key, runs_on
from buzzer.engine.fused.weights import EIGHTS, FLOATS, EncoderWeights, random
from buzzer.engine.kernels.ahead import Ahead
from buzzer.engine.kernels.facts import Facts
from buzzer.engine.kernels.jit import triton
from buzzer.engine.kernels.timing import capture, gpu_name, replays, require_gpu
from buzzer.engine.kernels.tune import Tuned, encoder_shapes, tune
from buzzer.errors import UnsupportedError

REPLAYS = 100
LONGEST = 512  # tokens of one sequence; more are several sequences of SEQUENCE tokens
SEQUENCE = 128
# Largest relative error of a mode's output. Modes round states at different points, and eight-bit steps are coarse: on an H200, correct
# modes of BERT-Large in FP8 differ from plain launches by 0.050 (early) and 0.055 (cuda).
ERROR = 0.1
DIFFERS = "its output differs from that of plain launches"
Form = tuple[int, int, int, int, str]  # layers, size, wide, heads, precision


@dataclass(frozen=True)
class ModeFacts(Facts):
    """The measurement of a mode. None means unknown or, for `refused`, that the mode may be used.

    microseconds: median device time of one graph launch with a cold L2 cache.  error: relative distance of the output from
    the output of plain launches.  refused: why the mode must not be used.
    """

    mode: str
    microseconds: float | None = None
    error: float | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Taken(Facts):
    """The stored mode of a program. in_time: whether all modes were measured before the time limit."""

    program: str
    taken: str
    in_time: bool


def tune_encoder(form: Form, tokens: int, seconds: float) -> Iterator[Facts]:
    """Find the best tiles of the encoder's four GEMMs, then its fastest mode with a correct output. Each result is stored at once.

    Starts no new measurement after `seconds`. Raises UnsupportedError without a GPU.
    """
    require_gpu()
    until = time.monotonic() + seconds
    path, kept = caches.kernels() / f"{gpu_name()}.json", Tuned.load("cuda")
    shared = triton.runtime.driver.active.utils.get_device_properties(0)["max_shared_mem"]
    capability = torch.cuda.get_device_capability()
    _, size, wide, _, precision = form
    shapes = encoder_shapes(tokens, size, wide, EIGHTS.get(precision) or FLOATS[precision])
    with Ahead(10 * capability[0] + capability[1], shared) as ahead:
        for choice in tune(shapes, kept, path, ahead, shared, until):
            yield choice.facts()
        modes = [mode for mode in MODES if runs_on(mode, capability)]
        compiling = [ahead.start(launches_of, form, tokens, kept, mode) for mode in modes]
        weights, best = random(*form, "cuda"), inf
        key = program_key(weights, tokens)
        for mode, compiled in zip(modes, compiling, strict=True):
            if not wait([compiled], max(0.0, until - time.monotonic())).done:
                break
            facts = measured(weights, tokens, kept, mode)
            yield facts
            if facts.refused is None and facts.microseconds is not None and facts.microseconds < best:
                best, kept.modes[key] = facts.microseconds, mode
                kept.write(path)
    yield Taken(key, kept.mode(key), time.monotonic() < until)


def measured(weights: EncoderWeights, tokens: int, kept: Tuned, mode: str) -> ModeFacts:
    """The time and error of a mode. A mode other than plain is refused, before it is timed, if it needs more resources than the
    GPU has, if it cannot run this encoder, if a barrier times out, or if its output differs from that of plain launches."""
    plain = random_program(weights, tokens, kept, "plain")
    plain.run()
    try:
        program = random_program(weights, tokens, kept, mode)
        program.run()
        program.check()  # before it runs a hundred times
        error = difference(program.output, plain.output)
        if not error < ERROR:
            return ModeFacts(mode, error=error if isfinite(error) else None, refused=DIFFERS)
        graph = capture(program.run)
        times = replays(graph, REPLAYS, cold=True)
        program.output.fill_(nan)
        graph.replay()
        program.check()
        error = difference(program.output, plain.output)
    except (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError, RuntimeError) as reason:
        if mode == "plain":
            raise
        return ModeFacts(mode, refused=f"{type(reason).__name__}: {reason}")
    except UnsupportedError as reason:
        return ModeFacts(mode, refused=reason.message)
    refused = None if error < ERROR else DIFFERS
    return ModeFacts(mode, median(times), error if isfinite(error) else None, refused)


def difference(got: Tensor, want: Tensor) -> float:
    """The distance between two outputs, relative to the second. NaN if a value is not finite."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def launches_of(form: Form, tokens: int, kept: Tuned, mode: str) -> list[AnyLaunch]:
    """The launches that will be measured, on the "meta" device, so that they can be compiled ahead."""
    return Lowering(random(*form, "meta"), tokens, 1, kept.tile, mode).program("none", False).launches


def random_program(weights: EncoderWeights, tokens: int, kept: Tuned, mode: str) -> Program:
    """A program whose input is random tokens: one sequence, or sequences of 128 tokens if there are more than 512."""
    program = Lowering(weights, tokens, 1, kept.tile, mode).program("none", False)
    torch.manual_seed(0)
    sequence = tokens if tokens <= LONGEST else SEQUENCE
    at = torch.arange(tokens)
    program.inputs.ids[0] = torch.randint(0, len(weights.tables[0]), (tokens,))
    program.inputs.ids[1] = at % sequence % len(weights.tables[1])
    program.inputs.spans[0] = at // sequence * sequence
    program.inputs.spans[1] = (at // sequence * sequence + sequence).clamp(max=tokens)
    return program
