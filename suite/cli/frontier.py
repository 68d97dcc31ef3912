"""`buzzer frontier`: a BERT whole and cut to fewer layers, in every precision: accuracy against latency."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from buzzer.suite import api, registry
from buzzer.suite.api import Frontier
from buzzer.suite.cli.progress import ProgressDisplay
from buzzer.suite.cli.run import exit_with
from buzzer.suite.config_file import MOST_REPEATS, MOST_SEED
from buzzer.suite.records import machine, record
from buzzer.suite.report import frontier
from buzzer.suite.report.console import WIDE, cells
from buzzer.suite.requests import DEFAULT_OUT, FrontierRequest


def main(
    model: Annotated[
        str, typer.Argument(help="bert (MiniLM-L6), or a Hugging Face BERT folder with a tokenizer.")
    ] = "bert",
    backend: Annotated[str, typer.Option(help="Backends, by comma, or all.")] = "all",
    precision: Annotated[str, typer.Option(help="Precisions of the whole model, by comma, or all.")] = "all",
    rounds: Annotated[int, typer.Option(min=1, max=MOST_REPEATS, help="Timed runs of each variant.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    budget: Annotated[str, typer.Option(help="A budget's name, or 2c8g10m.")] = "unlimited",
    data: Annotated[
        Path | None, typer.Option(help="Folder of the labelled sentences; default: generated ones.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of data and training.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the records, the chart and its data.")] = DEFAULT_OUT,
    resume: Annotated[bool, typer.Option(help="Skip what already has an ok record in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The chart's data as one object.")] = False,
) -> None:
    """Draw accuracy against latency of a BERT, whole and cut to fewer layers, on labelled sentences."""
    request = FrontierRequest(
        model=model,
        backends=backend,
        precisions=precision,
        rounds=rounds,
        device=device,
        budget=budget,
        data=data,
        seed=seed,
        resume=resume,
    )
    with ProgressDisplay() as display:
        made = api.frontier(request, out=out, observer=display)
    if made.points:
        publish(made, out, as_json)
    exit_with(made.records)


def publish(made: Frontier, out: Path, as_json: bool) -> None:
    """Data and chart on disk; the table, or with --json the data, on stdout."""
    runs = [r for r in made.records if r.job == "predict"]
    first, points = runs[0], made.points
    title = f"{first.task}: accuracy against latency, {machine.describe(first.machine)}"
    base = frontier.reference(points, made.layers, registry.task(first.task).reference.backend)
    notes = sorted({note for r in runs for note in r.notes})
    record.write_text(out / "frontier.csv", frontier.csv_text(points))
    record.write_text(out / "frontier.svg", frontier.chart(points, title))
    if as_json:
        facts = {
            "task": first.task,
            "full_layers": made.layers,
            "reference_accuracy": base,
            "data_source": first.data_source,
            "machine": machine.describe(first.machine),
            "notes": notes,
        }
        print(json.dumps(frontier.data(points, facts)))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    table = Table(title=Text(title), caption="* on the Pareto front", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in frontier.COLUMNS:
        table.add_column(name)
    for line in frontier.table(points, base):
        table.add_row(*cells(line))
    console.print(table)
    for note in notes:
        console.print(Text(f"- {note}"))
    print(f"chart: {out / 'frontier.svg'}, its data: {out / 'frontier.csv'}")
