"""`buzzer bench`: one model on every backend and precision, timed alone; a record each and a rank table."""

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
    backend: Annotated[str, typer.Option(help="Backends, by comma, or all.")] = "all",
    precision: Annotated[str, typer.Option(help="Precisions, by comma, or all.")] = "all",
    batch: Annotated[
        str, typer.Option(help="Rows a run; several by comma: where one backend overtakes another.")
    ] = "1",
    seq: Annotated[int, typer.Option(min=1, help="Tokens a row; with --packing packed, tokens a run.")] = 128,
    lengths: Annotated[str, typer.Option(help="fixed, or real: rows as long as real sentences.")] = "fixed",
    packing: Annotated[
        str, typer.Option(help="Of real lengths, by comma: padded, sorted, packed.")
    ] = "padded",
    inputs: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=4096,
            help="Different batches to rotate through; 16 if not given, fewer for large ones.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Least timed runs a round; a p99 needs 459 in all.")] = 50,
    seconds: Annotated[
        float, typer.Option(min=0, help="Least seconds of warm runs, and of cold ones, a round.")
    ] = 2.0,
    at_most: Annotated[
        float, typer.Option(min=0, help="Seconds after which a round ends, with 4 runs at the least.")
    ] = 120.0,
    rounds: Annotated[
        int, typer.Option(min=1, max=MOST_REPEATS, help="Rounds over all variants, every other in reverse.")
    ] = 2,
    scenario: Annotated[str, typer.Option(help="MLPerf: single-stream, offline or server.")] = "",
    min_duration: Annotated[
        float, typer.Option(min=0, help="Seconds that LoadGen runs; MLPerf: 600.")
    ] = 600.0,
    qps: Annotated[
        float, typer.Option(min=0, help="Queries a second offered to server; 0 = half of what is possible.")
    ] = 0.0,
    bound: Annotated[
        float, typer.Option(help="Latency bound of server in ms; MLPerf's for BERT: 130.")
    ] = 130.0,
    loadgen_seeds: Annotated[
        str,
        typer.Option(help="LoadGen's seeds: of the library, the samples, the schedule; MLPerf gives them."),
    ] = "0,0,0",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    budget: Annotated[str, typer.Option(help="A budget's name, or 2c8g10m.")] = "unlimited",
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Seed of random weights and of inputs.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = DEFAULT_OUT,
    as_json: Annotated[bool, typer.Option("--json", help="One record a line, best first.")] = False,
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
        inputs=inputs,
        count=count,
        seconds=seconds,
        at_most=at_most,
        rounds=rounds,
        scenario=scenario,
        min_duration=min_duration,
        qps=qps,
        bound=bound,
        loadgen_seeds=seeds_of(loadgen_seeds),
        device=device,
        budget=budget,
        seed=seed,
    )
    with ProgressDisplay() as display:
        made = api.bench(request, out=out, observer=display)
    show(made, as_json)
    exit_with(made)


def batches_of(text: str) -> list[int]:
    """The batch sizes of `--batch`. Raises UsageError for what is not a whole number."""
    try:
        return [int(part) for part in names(text)]
    except ValueError:
        raise UsageError(
            f"--batch {text}: not whole numbers above zero", "write it like 1 or 1,100,10000"
        ) from None


def seeds_of(text: str) -> list[int]:
    """LoadGen's three seeds, each of 64 bits. Raises UsageError."""
    parts = names(text)
    seeds = [int(part) for part in parts if part.isascii() and part.isdigit()]
    if len(seeds) != len(loadgen.SEEDS) or len(seeds) != len(parts) or max(seeds) >= 1 << 64:
        raise UsageError(f"--loadgen-seeds {text}: not three whole numbers", "write them like 1,2,3")
    return seeds


def show(records: Sequence[Record], as_json: bool) -> None:
    """The rank table, or the records, best first, on stdout."""
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
