"""`buzzer bench`: times one model on backends and precisions. Writes a record for each run and shows a ranked table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from buzzer.errors import UsageError
from buzzer.suite import api
from buzzer.suite.bench import groups, loadgen
from buzzer.suite.cli.run import exit_with
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.config_file import MOST_REPEATS, MOST_SEED
from buzzer.suite.records.schema import Record
from buzzer.suite.report import bench_table, console
from buzzer.suite.requests import DEFAULT_OUT, BenchRequest, names


def main(
    model: Annotated[str, typer.Argument(help="A name of `buzzer list`, an ONNX file, or a model folder.")],
    backend: Annotated[str, typer.Option(help="Backends, separated by commas, or all.")] = "all",
    precision: Annotated[str, typer.Option(help="Precisions, separated by commas, or all.")] = "all",
    batch: Annotated[
        str,
        typer.Option(help="Rows per run; several sizes, separated by commas, show which backend wins where."),
    ] = "1",
    seq: Annotated[
        int, typer.Option(min=1, help="Tokens per row; with --packing packed, tokens per run.")
    ] = 128,
    lengths: Annotated[str, typer.Option(help="fixed, or real: rows as long as real sentences.")] = "fixed",
    packing: Annotated[
        str, typer.Option(help="padded; with real lengths also sorted, packed; separated by commas.")
    ] = "padded",
    inputs: Annotated[
        str,
        typer.Option(
            help="Different batches to rotate through (default: 16, or fewer if they are large), or a file with inputs: "
            ".npz, .npy, .parquet or .csv.",
        ),
    ] = "",
    count: Annotated[
        int, typer.Option(min=1, help="Least timed runs per round; a p99 needs 459 in all rounds.")
    ] = 50,
    seconds: Annotated[
        float, typer.Option(min=0, help="Least seconds of warm runs, and of cold runs, per round.")
    ] = 2.0,
    at_most: Annotated[
        float, typer.Option(min=0, help="Seconds after which a round ends, but not before 4 runs.")
    ] = 120.0,
    rounds: Annotated[
        int,
        typer.Option(min=1, max=MOST_REPEATS, help="Rounds over all variants; every second one is reversed."),
    ] = 2,
    scenario: Annotated[str, typer.Option(help="MLPerf scenario: single-stream, offline or server.")] = "",
    min_duration: Annotated[
        float, typer.Option(min=0, help="Seconds that LoadGen runs; MLPerf: 600.")
    ] = 600.0,
    qps: Annotated[
        float,
        typer.Option(
            min=0, help="Queries per second of server; 0 = find the highest rate that keeps the bound."
        ),
    ] = 0.0,
    bound: Annotated[
        float, typer.Option(help="Latency bound of server in ms; MLPerf's for BERT: 130.")
    ] = 130.0,
    loadgen_seeds: Annotated[
        str,
        typer.Option(help="LoadGen's seeds for library, samples and schedule; MLPerf publishes them."),
    ] = "0,0,0",
    mlperf: Annotated[
        str,
        typer.Option(
            help="MLPerf's name of the model, as in bert: LoadGen's official duration, bound and seeds."
        ),
    ] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    budget: Annotated[str, typer.Option(help="Name of a budget, or limits such as 2c8g10m.")] = "unlimited",
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed for random weights and inputs.")] = 0,
    resume: Annotated[bool, typer.Option(help="Skip runs that have an ok record in --out.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = DEFAULT_OUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print one record per line, best first.")] = False,
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
    with ProgressDisplay() as display:
        records = api.bench(request, out=out, observer=display)
    show(records, as_json)
    exit_with(records)


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
    parts = names(text)
    seeds = [int(part) for part in parts if part.isascii() and part.isdigit()]
    if len(seeds) != len(loadgen.SEEDS) or len(seeds) != len(parts) or max(seeds) >= 1 << 64:
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
