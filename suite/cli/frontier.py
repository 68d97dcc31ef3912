"""`buzzer frontier`: accuracy against latency of a BERT, whole and cut to fewer layers, in every precision."""

from pathlib import Path
from typing import Annotated

import typer

from buzzer.suite import api, registry
from buzzer.suite.api import Frontier
from buzzer.suite.cli.run import exit_with
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.config_file import MOST_REPEATS, MOST_SEED
from buzzer.suite.records import record
from buzzer.suite.report import charts, console, frontier
from buzzer.suite.requests import DEFAULT_OUT, FrontierRequest


def main(
    model: Annotated[
        str, typer.Argument(help="bert (MiniLM-L6), or a Hugging Face BERT folder with a tokenizer.")
    ] = "bert",
    backend: Annotated[str, typer.Option(help="Backends, separated by commas, or all.")] = "all",
    precision: Annotated[
        str, typer.Option(help="Precisions of the whole model, separated by commas, or all.")
    ] = "all",
    rounds: Annotated[int, typer.Option(min=1, max=MOST_REPEATS, help="Timed runs of each variant.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    budget: Annotated[str, typer.Option(help="Name of a budget, or limits such as 2c8g10m.")] = "unlimited",
    data: Annotated[
        Path | None, typer.Option(help="Folder of the labelled sentences; default: generated data.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed for data and training.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the records, the chart and its data.")] = DEFAULT_OUT,
    resume: Annotated[bool, typer.Option(help="Skip runs that have an ok record in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the chart's data as one object.")] = False,
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
        result = api.frontier(request, out=out, observer=display)
    if result.points:
        publish(result, out, as_json)
    exit_with(result.records)


def publish(result: Frontier, out: Path, as_json: bool) -> None:
    """Write the data and the chart to `out`. Print the table or, with --json, the data."""
    runs = [r for r in result.records if r.job == "predict"]
    reference = registry.task(runs[0].task).reference.backend
    drawn = frontier.frontier(result.points, runs, result.layers, reference)
    record.write_text(out / "frontier.csv", drawn.to_csv())
    record.write_text(out / "frontier.svg", charts.svg(frontier.chart(result.points, runs, drawn.title)))
    if as_json:
        print(drawn.to_json())
        return
    console.show(drawn.table())
    print(f"chart: {out / 'frontier.svg'}, its data: {out / 'frontier.csv'}")
