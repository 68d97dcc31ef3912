"""`buzzer bench`: one model on every backend and precision, timed alone; a record each and a rank table."""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from buzzer import caches
from buzzer.errors import DataError, UnsupportedError, UsageError, unknown_name
from buzzer.models.api.context import Data
from buzzer.suite import budget as budgets
from buzzer.suite import registry
from buzzer.suite.bench import loadgen, plan
from buzzer.suite.bench.plan import Choice, Planned
from buzzer.suite.cli.frontier import run as draw_frontier
from buzzer.suite.cli.progress import ProgressDisplay
from buzzer.suite.cli.run import DEFAULT_OUT, check_budgets, keep, names, watch
from buzzer.suite.config_file import MOST_REPEATS, MOST_SEED
from buzzer.suite.records import machine, record
from buzzer.suite.records.record import Record
from buzzer.suite.report import bench_table, leaderboard
from buzzer.suite.report.console import cells
from buzzer.suite.run import reaper, runner

WIDTH = 180  # columns of a table that goes into a file or a pipe
SCENARIOS = ("single-stream", "offline", "server")


def main(
    context: typer.Context,
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
    frontier: Annotated[
        bool, typer.Option("--frontier", help="Accuracy against latency, whole and cut to fewer layers.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="With --frontier: folder of the labelled sentences.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="With --frontier: skip what has a record in --out.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    budget: Annotated[str, typer.Option(help="A budget's name, or 2c8g10m.")] = "unlimited",
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Seed of random weights and of inputs.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = DEFAULT_OUT,
    as_json: Annotated[bool, typer.Option("--json", help="One record a line, best first.")] = False,
) -> None:
    """Time a model's inference sessions, check every output, and rank them."""
    if frontier:
        leave(draw_frontier(model, context.params))
        return
    choices = [choice_of(context.params | {"batch": n}, p) for n in numbers(batch) for p in names(packing)]
    made: list[Record] = []
    record.check_writable(out)
    with (
        ProgressDisplay() as screen,
        tempfile.TemporaryDirectory(prefix="buzzer-bench-", ignore_cleanup_errors=True) as work,
        reaper.swept(Path(work)),
    ):
        plans = [(choice, plan.plan(choice)) for choice in choices]
        screen.plan(sum(len(planned) for _, planned in plans))
        for i, (choice, planned) in enumerate(plans):
            made += run(choice, planned, Path(work) / str(i), out, screen)
            if made and runner.interrupted(made[-1]):
                break
    show(made, as_json)
    leave(made)


def numbers(text: str) -> list[int]:
    """Whole numbers above zero, by comma."""
    try:
        found = [int(part) for part in names(text)]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"--batch {text}: not whole numbers above zero", "write it like 1 or 1,100,10000")
    return found


def seeds_of(text: str) -> list[int]:
    """LoadGen's three seeds, each of 64 bits."""
    found = [int(part) for part in names(text) if part.isascii() and part.isdigit()]
    if len(found) != len(loadgen.SEEDS) or len(found) != len(names(text)) or max(found) >= 1 << 64:
        raise UsageError(f"--loadgen-seeds {text}: not three whole numbers", "write them like 1,2,3")
    return found


def leave(made: Sequence[Record]) -> None:
    """Exit code 1 where a run failed or was wrong."""
    if any(r.outcome not in ("ok", "unsupported") for r in made):
        raise typer.Exit(1)


def choice_of(options: dict[str, Any], packing: str) -> Choice:
    """What to run, every name checked."""
    known = {"device": ["cpu", "cuda"], "lengths": ["fixed", "real"], "scenario": ["", *SCENARIOS]}
    for name, values in known.items():
        if options[name] not in values:
            raise unknown_name(name, options[name], values)
    budget = budgets.resolve(options["budget"])
    model = registry.model(options["model"])
    precisions = [] if options["precision"] == "all" else names(options["precision"])
    registry.check_precisions(precisions)
    if options["scenario"] and options["lengths"] == "real":
        raise UsageError("LoadGen's samples are rows of one length here", "leave out --lengths real")
    seq = plan.tokens_of(model, options["seq"])
    seeds = {"loadgen_seeds": seeds_of(options["loadgen_seeds"])} if options["scenario"] else {}
    taken = (
        "batch",
        "lengths",
        "count",
        "seconds",
        "at_most",
        "scenario",
        "min_duration",
        "qps",
        "bound",
    )
    choice = Choice(
        model=model,
        backends=plan.backends_of(model, names(options["backend"])),
        precisions=precisions,
        device=options["device"],
        budget=budget,
        seed=options["seed"],
        rounds=1 if options["scenario"] else options["rounds"],
        params={name: options[name] for name in taken}
        | {"packing": packing, "seq": seq, **seeds}
        | {"inputs": options["inputs"] or plan.inputs_of(options["batch"], seq)},
    )
    check_budgets([plan.reference_run(choice)], "fail")
    return choice


def run(
    choice: Choice, planned: Sequence[Planned], work: Path, out: Path, screen: ProgressDisplay
) -> list[Record]:
    """The right answers first, then every planned run; records in the order in which they were made."""
    work.mkdir()
    data, failed = answers(choice, work, screen)
    made: list[Record] = []
    missing: set[tuple[str, str]] = set()  # found out in the first round: once is enough
    for item in planned:
        if (item.run.backend, item.run.precision) in missing:
            continue
        made.append(one(item, data, work, out, failed, screen))
        if made[-1].outcome == "unsupported":
            missing.add((item.run.backend, item.run.precision))
        if runner.interrupted(made[-1]):
            break
    return made


def answers(choice: Choice, work: Path, screen: ProgressDisplay) -> tuple[Data, Record | None]:
    """What the reference gives, under `work`, and its facts; the record where it could not be had.

    Raises UsageError for a model or sizes that cannot be.
    """
    kept = caches.folder() / "bench"
    empty = Data(kept, "", "generated", {}, 1.0)
    reference = plan.reference_run(choice)
    found = runner.bench(reference, empty, caches.folder(), work, work, watch(screen, reference))
    screen.clear()
    if found.outcome == "unsupported":
        raise UnsupportedError(found.message, found.hint)
    if found.outcome == "error" and found.details.get("user_error"):
        raise UsageError(found.message, found.hint)
    if found.outcome != "ok":
        return empty, found
    told = found.details
    return Data(kept, told["fingerprint"], told["source"], {}, 1.0, tuple(told["notes"])), None


def one(
    item: Planned, data: Data, work: Path, out: Path, failed: Record | None, screen: ProgressDisplay
) -> Record:
    """One run's record, written."""
    if item.problem is not None:
        new = runner.not_started(item.run, data, "unsupported", item.problem.message, item.problem.hint)
    elif failed is not None:
        message = f"its reference ended {failed.outcome}: {failed.message}"
        new = runner.not_started(item.run, data, failed.outcome, message, failed.hint)
        if runner.interrupted(failed):
            new = new.model_copy(update={"details": failed.details})
    else:
        with tempfile.TemporaryDirectory(dir=work) as files:
            new = runner.bench(item.run, data, caches.folder(), work, Path(files), watch(screen, item.run))
            kept = keep(new, item.run, out, screen)
            keep_logs(Path(files), out / "files" / new.run_id[:8])
            return kept
    return keep(new, item.run, out, screen)


def keep_logs(made: Path, kept: Path) -> None:
    """LoadGen's own logs beside the records, where it wrote some. Raises DataError where they cannot be written."""
    if logs := sorted(made.glob(loadgen.LOGS)):
        runner.make_folder(kept)
        try:
            for log in logs:
                shutil.copy(log, kept / log.name)
        except OSError as error:
            raise DataError(f"{kept}: LoadGen's logs cannot be kept: {error.strerror}") from error


def show(records: Sequence[Record], as_json: bool) -> None:
    """The rank table, or the records, best first, on stdout."""
    if as_json:
        for group in bench_table.boards(records).values():
            for rank, row in enumerate(bench_table.rows(group), 1):
                for r in row.records:
                    print(json.dumps({"rank": rank if row.ranked else None} | r.model_dump(mode="json")))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for group in bench_table.boards(records).values():
        table = Table(title=Text(bench_table.title(group[0])), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in bench_table.COLUMNS:
            table.add_column(name, overflow="fold", no_wrap=name != "outcome")
        for line in bench_table.table(group):
            table.add_row(*cells(line))
        console.print(table)
        console.print(Text(machine.describe(group[0].machine)))
        for note in leaderboard.bench_notes(group):
            console.print(Text(f"- {note}"))
    for told_of in bench_table.fastest(records):
        console.print(Text(f"fastest at {told_of}"))
