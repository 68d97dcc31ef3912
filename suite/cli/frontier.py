"""`buzzer frontier`: accuracy against latency of a BERT, whole and cut to fewer layers, in every precision."""

from pathlib import Path
from typing import Annotated

import typer

from buzzer.suite import api, registry
from buzzer.suite.api import Frontier
from buzzer.suite.cli import dry_run as plans
from buzzer.suite.cli import options
from buzzer.suite.cli.outcome import exit_with
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.records import record
from buzzer.suite.report import console, frontier
from buzzer.suite.requests import DEFAULT_OUT, FrontierRequest
from buzzer.suite.run import frontier_plan

EXAMPLES = """Examples:

buzzer frontier bert

buzzer frontier bert --backend onnxruntime --precision fp32,int8 --dry-run
"""


def main(
    model: Annotated[
        str,
        typer.Argument(
            help="bert (MiniLM-L6), or a Hugging Face BERT folder with a tokenizer.", metavar="MODEL"
        ),
    ] = "bert",
    backend: options.Backend = "all",
    precision: options.Precision = "all",
    device: options.Device = "cpu",
    data: options.Data = None,
    seed: options.Seed = 0,
    budget: options.Budget = "unlimited",
    rounds: options.Rounds = 2,
    out: options.Out = DEFAULT_OUT,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
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
    if dry_run:
        plan, _ = frontier_plan.plan_of(request)
        plans.show_plan(plan, out, as_json)
        return
    with ProgressDisplay() as display:
        result = api.frontier(request, out=out, observer=display)
    if result.points:
        publish(result, out, as_json)
    exit_with(result.records, display.ended_by)


def publish(result: Frontier, out: Path, as_json: bool) -> None:
    """Write the data and the chart to `out`. Print the table or, with --json, the data."""
    runs = [r for r in result.records if r.job == "predict"]
    reference = registry.task(runs[0].task).reference.backend
    drawn = frontier.frontier(result.points, runs, result.layers, reference)
    for path, text in drawn.files(out / "frontier.svg", runs).items():
        record.write_text(path, text)
    if as_json:
        print(drawn.to_json())
        return
    console.show(drawn.table())
    print(f"chart: {out / 'frontier.svg'}, its data: {out / 'frontier.csv'}")
