"""`buzzer bench`: times one model on backends and precisions. Writes a record for each run and shows a ranked table."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text

from buzzer.errors import UsageError
from buzzer.suite import api
from buzzer.suite.bench import groups, loadgen, plan
from buzzer.suite.cli import dry_run as plans
from buzzer.suite.cli import options
from buzzer.suite.cli.options import LIMITS, option
from buzzer.suite.cli.outcome import exit_with
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.records.schema import Record
from buzzer.suite.report import bench_table, console
from buzzer.suite.requests import DEFAULT_OUT, BenchRequest, names, parts

SIZES, MLPERF = "Sizes of the inputs", "MLPerf's LoadGen"
EXAMPLES = """Examples:

buzzer bench bert-base --batch 1 --seq 128

buzzer bench my_model.onnx --backend onnxruntime,openvino --batch 1,32

buzzer bench trees.ubj --inputs rows.parquet --batch 1,1000

buzzer bench gbdt --batch 1,1000,100000 --dry-run
"""


def main(
    model: Annotated[
        str,
        typer.Argument(
            help="A name of `buzzer list`, a Hugging Face folder, an ONNX file, or a file of boosted trees.",
            autocompletion=options.completes(options.model_names),
            metavar="MODEL",
        ),
    ],
    backend: options.Backend = "all",
    precision: options.Precision = "all",
    device: options.Device = "cpu",
    batch: Annotated[
        str,
        option(
            SIZES,
            "Rows per run; several sizes, separated by commas, show which backend wins where.",
            metavar="SIZES",
        ),
    ] = "1",
    seq: Annotated[
        int, option(SIZES, "Tokens per row; with --packing packed, tokens per run.", metavar="N")
    ] = 128,
    lengths: Annotated[
        str, option(SIZES, "fixed, or real: rows as long as real sentences.", metavar="KIND")
    ] = "fixed",
    packing: Annotated[
        str,
        option(SIZES, "padded; with real lengths also sorted, packed; separated by commas.", metavar="KINDS"),
    ] = "padded",
    inputs: Annotated[
        str,
        option(
            SIZES,
            "Different batches to rotate through (default: 16, or fewer if they are large), or a file with real inputs.",
            metavar="N_OR_FILE",
        ),
    ] = "",
    seed: options.Seed = 0,
    budget: options.Budget = "unlimited",
    rounds: options.Rounds = 2,
    count: Annotated[
        int, option(LIMITS, "Least timed runs per round; a p99 needs 459 in all rounds.", metavar="N")
    ] = 50,
    seconds: Annotated[
        float,
        option(LIMITS, "Least seconds of warm runs, and of cold runs, per round.", metavar="S"),
    ] = 2.0,
    at_most: Annotated[
        float,
        option(LIMITS, "Seconds after which a round ends, but not before 4 runs.", metavar="SECONDS"),
    ] = 120.0,
    scenario: Annotated[
        str, option(MLPERF, "MLPerf scenario: single-stream, offline or server.", metavar="NAME")
    ] = "",
    min_duration: Annotated[
        float, option(MLPERF, "Seconds that LoadGen runs; MLPerf: 600.", metavar="SECONDS")
    ] = 600.0,
    qps: Annotated[
        float,
        option(
            MLPERF,
            "Queries per second of server; 0 = find the highest rate that keeps the bound.",
            metavar="RATE",
        ),
    ] = 0.0,
    bound: Annotated[
        float, option(MLPERF, "Latency bound of server in ms; MLPerf's for BERT: 130.", metavar="MS")
    ] = 130.0,
    loadgen_seeds: Annotated[
        str,
        option(
            MLPERF,
            "LoadGen's seeds for library, samples and schedule; MLPerf publishes them.",
            metavar="SEEDS",
        ),
    ] = "0,0,0",
    mlperf: Annotated[
        str,
        option(
            MLPERF,
            "MLPerf's name of the model, as in bert: its own duration, bound and seeds.",
            metavar="NAME",
        ),
    ] = "",
    resume: options.Resume = False,
    out: options.Out = DEFAULT_OUT,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Time a model's inference sessions, check every output, and rank them."""
    request = BenchRequest(
        model=model,
        backends=backend,
        precisions=precision,
        batches=batches_of(batch),
        seq=seq,
        lengths=lengths,
        packings=packing,
        inputs=inputs_of(inputs),
        count=count,
        seconds=seconds,
        at_most=at_most,
        rounds=rounds,
        scenario=scenario,
        min_duration=min_duration,
        qps=qps,
        bound=bound,
        loadgen_seeds=seeds_of(loadgen_seeds),
        mlperf=mlperf,
        device=device,
        budget=budget,
        seed=seed,
        resume=resume,
    )
    if dry_run:
        planned = [item for each in plan.selections(request) for item in plan.plan(each)]
        plans.show_items(planned, out, as_json)
        return
    with ProgressDisplay() as display:
        records = api.bench(request, out=out, observer=display)
    show(records, as_json)
    exit_with(records, display.ended_by)


def inputs_of(text: str) -> int | str | None:
    """The number of batches or the file of `--inputs`; None if it is not given."""
    return int(text) if text.isascii() and text.isdigit() else text or None


def batches_of(text: str) -> list[int]:
    """The batch sizes of `--batch`. Raises UsageError for a part that is not a whole number."""
    try:
        return [int(part) for part in names(text)]
    except ValueError:
        raise UsageError(
            f"--batch {text}: not whole numbers above zero", "write it like 1 or 1,100,10000"
        ) from None


def seeds_of(text: str) -> list[int]:
    """The three seeds of `--loadgen-seeds`. Raises UsageError unless they are three whole numbers of 64 bits."""
    given = parts(text)
    seeds = [int(part) for part in given if part.isascii() and part.isdigit()]
    if len(seeds) != len(loadgen.SEEDS) or len(seeds) != len(given) or max(seeds) >= 1 << 64:
        raise UsageError(f"--loadgen-seeds {text}: not three whole numbers", "write them like 1,2,3")
    return seeds


def show(records: Sequence[Record], as_json: bool) -> None:
    """Print the ranked tables or, with --json, the records, best first."""
    if as_json:
        for group in groups.boards(records).values():
            for rank, row in enumerate(groups.rows(group), 1):
                for r in row.records:
                    print(json.dumps({"rank": rank if row.ranked else None} | r.model_dump(mode="json")))
        return
    terminal = console.terminal()
    for group in groups.boards(records).values():
        console.show(bench_table.board(group), terminal)
    for line in bench_table.fastest(records):
        terminal.print(Text(f"fastest at {line}"))
