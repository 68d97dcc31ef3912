"""python -m buzzer.engine.fused plan | probe | tune

plan   the kernels of an encoder, with bytes, FLOPs and floor; with --compile the code of each; needs no GPU
probe  what a GPU costs: launch gap, one wave of a GEMM, bandwidths, grid barrier
tune   measures tiles and ways to launch (plain, dependent, early weights, one persistent kernel) and stores the fastest; begins nothing
       new after --seconds, what it has found by then is stored

A JSON object a line on stdout. Exit code 2 where this machine cannot do it.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from buzzer.errors import BuzzerError

Record = dict[str, Any]


def plan(given: argparse.Namespace) -> Iterator[Record]:
    """Every kernel of one run, by datasheet rates of an H100; then the sums."""
    from buzzer.engine.fused.lowering import Lowering
    from buzzer.engine.fused.weights import random
    from buzzer.engine.kernels.offline import compiled, floor
    from buzzer.engine.kernels.tune import Tuned

    weights = random(given.layers, given.size, given.wide, given.heads, given.precision, "meta")
    program = Lowering(weights, given.tokens, 1, Tuned().tile, given.mode).program("none", False)
    bits = 8 * (weights.eight or weights.dtype).itemsize
    for launch in program.launches:
        record: Record = launch.facts()
        record |= {"floor_us": round(floor(launch.constant_bytes, launch.flops, bits), 3)}
        yield record | (compiled(launch).facts() if given.compile else {})
    moved = sum(launch.constant_bytes for launch in program.launches)
    flops = sum(launch.flops for launch in program.launches)
    yield {
        "kernels": len(program.launches),
        "constant_bytes": moved,
        "moved_bytes": sum(launch.moved_bytes for launch in program.launches),
        "flops": flops,
        "floor_us": round(floor(moved, flops, bits), 1),
    }


def probe(given: argparse.Namespace) -> Iterator[Record]:
    from buzzer.engine.kernels.probe import probes

    yield from probes()


def tune(given: argparse.Namespace) -> Iterator[Record]:
    """The four GEMMs of a layer, then the whole encoder in each mode."""
    from buzzer.engine.fused.tune import tune_encoder

    form = (given.layers, given.size, given.wide, given.heads, given.precision)
    yield from tune_encoder(form, given.tokens, given.seconds)


def arguments() -> argparse.ArgumentParser:
    """The command line; its shape defaults to BERT-Large, batch 1, 128 tokens."""
    parser = argparse.ArgumentParser(prog="python -m buzzer.engine.fused", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("plan", "probe", "tune"))
    for name, default in {"layers": 24, "size": 1024, "wide": 4096, "heads": 16, "tokens": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16", "fp8", "int8"), default="fp8")
    parser.add_argument(
        "--mode", choices=("plain", "pdl", "early", "persistent"), default="plain", help="plan: how to launch"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="tune: time limit")
    parser.add_argument("--compile", action="store_true", help="plan: compile each kernel for an H100")
    return parser


def main() -> int:
    given = arguments().parse_args()
    try:
        for record in {"plan": plan, "probe": probe, "tune": tune}[given.what](given):
            print(json.dumps(record), flush=True)
    except BuzzerError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
