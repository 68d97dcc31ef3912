"""python -m buzzer.engine.fused plan | probe | products | tune | kernels | stages

plan   lists the kernels of an encoder with their bytes, FLOPs and least time; with --compile also facts about the compiled
       code of each; needs no GPU
probe  measures this GPU: launch gap, one wave of a GEMM, bandwidths, grid barrier
products  measures BERT-Large's products by this project's kernels and by NVIDIA's libraries, dense and 2:4 sparse
tune   measures tiles and launch modes (plain, pdl, early, persistent, cuda, cuda4, multicast, library), and stores the
       fastest; after --seconds it starts no new measurement and stores the results so far
kernels  measures each kernel of the middle layer in its place, with tuned tiles, and its least time
stages   measures the stages of the middle layer's products in the modes cuda, cuda4 and multicast, by the clocks of their blocks

Prints one JSON object per line. The exit code is 2 if this machine cannot run the command.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from buzzer.engine.kernels.facts import Facts, FloorFacts, PlanFacts
from buzzer.errors import BuzzerError

if TYPE_CHECKING:
    from buzzer.engine.fused.tune import Form
    from buzzer.engine.kernels.cuda.launch import CudaLaunch
    from buzzer.engine.kernels.jit import Launch

Line = tuple[Facts, ...]  # printed as one JSON object


def form(arguments: argparse.Namespace) -> "Form":
    """The shape and precision of the encoder that the command line names."""
    return arguments.layers, arguments.size, arguments.wide, arguments.heads, arguments.precision


def plan(arguments: argparse.Namespace) -> Iterator[Line]:
    """Each kernel of a run, with its least time from the datasheet of an H100; then the sums over all kernels."""
    from buzzer.engine.fused.lowering import Lowering
    from buzzer.engine.fused.weights import random
    from buzzer.engine.kernels.offline import floor
    from buzzer.engine.kernels.tune import Tuned

    weights = random(*form(arguments), "meta")
    program = Lowering(weights, arguments.tokens, 1, Tuned().tile, arguments.mode).program("none", False)
    bits = 8 * (weights.eight or weights.dtype).itemsize
    # The modes of this command have no launches by libraries.
    for launch in cast("list[Launch | CudaLaunch]", program.launches):
        least = FloorFacts(round(floor(launch.constant_bytes, launch.flops, bits), 3))
        code = (code_of(launch),) if arguments.compile else ()
        yield launch.facts(), least, *code
    constant = sum(launch.constant_bytes for launch in program.launches)
    moved = sum(launch.moved_bytes for launch in program.launches)
    flops = sum(launch.flops for launch in program.launches)
    least_us = round(floor(constant, flops, bits), 1)
    yield (PlanFacts(len(program.launches), constant, moved, flops, least_us),)


def code_of(launch: "Launch | CudaLaunch") -> Facts:
    """Facts about a launch's compiled code."""
    from buzzer.engine.kernels.cuda.launch import CudaLaunch
    from buzzer.engine.kernels.offline import compiled

    return launch.code() if isinstance(launch, CudaLaunch) else compiled(launch).facts()


def probe(arguments: argparse.Namespace) -> Iterator[Line]:
    """The GPU's facts, and the result of each probe."""
    from buzzer.engine.kernels.probe import probes

    for facts in probes():
        yield (facts,)


def products(arguments: argparse.Namespace) -> Iterator[Line]:
    """The time of each product by each kernel and library."""
    from buzzer.engine.kernels.products import products

    for facts in products():
        yield (facts,)


def tune(arguments: argparse.Namespace) -> Iterator[Line]:
    """The best tile of each of a layer's four GEMMs, then the time of the whole encoder in each mode, then the stored mode."""
    from buzzer.engine.fused.tune import tune_encoder

    for facts in tune_encoder(form(arguments), arguments.tokens, arguments.seconds):
        yield (facts,)


def kernels(arguments: argparse.Namespace) -> Iterator[Line]:
    """The time of each kernel of the middle layer in its place, then of that layer and of all kernels."""
    from buzzer.engine.fused.layer_times import layer_times

    for facts in layer_times(form(arguments), arguments.tokens, arguments.mode):
        yield (facts,)


def stages(arguments: argparse.Namespace) -> Iterator[Line]:
    """The stages of each CUDA C++ product of the middle layer."""
    from buzzer.engine.fused.stage_times import stage_times

    for facts in stage_times(form(arguments), arguments.tokens, arguments.mode):
        yield (facts,)


COMMANDS = {
    "plan": plan,
    "probe": probe,
    "products": products,
    "tune": tune,
    "kernels": kernels,
    "stages": stages,
}


def parser() -> argparse.ArgumentParser:
    """The command line. The default shape is BERT-Large at batch 1 and 128 tokens."""
    options = argparse.ArgumentParser(prog="python -m buzzer.engine.fused", description=__doc__)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("what", choices=COMMANDS)
    for name, default in {"layers": 24, "size": 1024, "wide": 4096, "heads": 16, "tokens": 128}.items():
        options.add_argument(f"--{name}", type=int, default=default)
    options.add_argument("--precision", choices=("fp32", "fp16", "bf16", "fp8", "int8"), default="fp8")
    options.add_argument(
        "--mode",
        choices=("plain", "pdl", "early", "persistent", "cuda", "cuda4", "multicast", "library"),
        default="plain",
        help="plan, kernels, stages: how to launch; plan has no mode library, kernels no persistent, and stages only those of CUDA C++",
    )
    options.add_argument("--seconds", type=float, default=60.0, help="tune: time limit")
    options.add_argument("--compile", action="store_true", help="plan: compile each kernel for an H100")
    return options


def as_json(line: Line) -> str:
    """The fields of all facts as one JSON object."""
    return json.dumps({name: value for facts in line for name, value in facts.as_json().items()})


def main() -> int:
    """Run the command line. Returns the exit code."""
    arguments = parser().parse_args()
    try:
        for line in COMMANDS[arguments.what](arguments):
            print(as_json(line), flush=True)
    except BuzzerError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
