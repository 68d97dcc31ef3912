"""`buzzer compare`: compares runs of one task on several engines, backends, devices, budgets and scales."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from buzzer.errors import UsageError
from buzzer.suite import api
from buzzer.suite.cli import dry_run as plans
from buzzer.suite.cli import options
from buzzer.suite.cli.options import DATA, OUTPUT, WHAT, option
from buzzer.suite.cli.outcome import exit_with
from buzzer.suite.cli.run import params_of
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.records import record
from buzzer.suite.report import compare_json, compare_text, console
from buzzer.suite.requests import DEFAULT_OUT, CompareRequest, names
from buzzer.suite.run import resolve

FULL, OLDER = "The full job", "Older records"
EXAMPLES = """Examples:

buzzer compare booking --scale 0.01,0.02,0.05,0.1

buzzer compare booking --from results --engine pandas,polars

buzzer compare booking --from new --against old --fail-if wall:5%
"""


def main(
    task: options.Task,
    from_: Annotated[
        list[Path] | None,
        option(
            WHAT,
            "Compare the records here, those that the other options name, and run nothing; repeatable.",
            "--from",
            metavar="PATH",
        ),
    ] = None,
    engine: options.Engine = "",
    backend: options.Backend = "",
    precision: options.Precision = "",
    device: options.Device = "",
    data: options.Data = None,
    scale: Annotated[
        str, option(DATA, "Scales of generated data, separated by commas.", metavar="SHARES")
    ] = "",
    train_scale: options.TrainScale = None,
    seed: options.Seed = 0,
    set_: options.Set = None,
    budget: options.Budget = "",
    rounds: options.Rounds = 5,
    on_unmet_budget: options.OnUnmetBudget = "fail",
    full: Annotated[
        float, option(FULL, "Scale of the full job, to which times are projected.", metavar="SHARE")
    ] = 1.0,
    full_budget: Annotated[
        str, option(FULL, "Budget of the full job; default: that of each variant.", metavar="NAME")
    ] = "",
    price: Annotated[
        str, option(FULL, "Dollars per hour: cpu=NUMBER_OR_NAME,cuda=...", metavar="PRICES")
    ] = "",
    against: Annotated[
        list[Path] | None,
        option(OLDER, "Older records to compare with, of today or of at least two days.", metavar="PATH"),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        option(
            OLDER,
            "FIGURE:PERCENT, such as wall:5%: fail if it is that much worse than --against.",
            metavar="LIMIT",
        ),
    ] = None,
    out: options.Out = DEFAULT_OUT,
    markdown: Annotated[
        Path | None, option(OUTPUT, "Markdown file to write as well.", metavar="FILE")
    ] = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Compare a task's runs: phases, speed-up with interval, cost, head-room, growth, and a projection to the full job."""
    request = CompareRequest(
        task=task,
        records=from_ or (),
        engines=engine,
        backends=backend,
        precisions=precision,
        devices=device,
        budget=budget,
        scales=scales_of(scale),
        train_scale=train_scale,
        data=data,
        seed=seed,
        rounds=rounds,
        params=params_of(set_ or []),
        full=full,
        full_budget=full_budget,
        against=against or (),
        fail_if=fail_if or (),
        price=price,
        on_unmet_budget=on_unmet_budget,
        resume=resume,
    )
    if markdown is not None:
        record.check_target(markdown)
    if dry_run:
        if from_:
            raise UsageError("--from runs nothing", "leave out --dry-run")
        plans.show_plan(resolve.compare_plan(request), out, as_json)
        return
    with ProgressDisplay() as display:
        compared = api.compare(request, out=out, observer=display)
    show(compared, as_json, markdown)
    if not from_:
        exit_with(compared.records, display.ended_by)
    regressed = any(change.failed for changes in compared.changes for change in changes)
    if not compared or regressed or any(compared.failures):
        raise typer.Exit(1)


def scales_of(text: str) -> list[float]:
    """The scales of `--scale`. Raises UsageError for a part that is not a number."""
    try:
        return [float(part) for part in names(text)]
    except ValueError:
        raise UsageError(
            f"--scale {text}: not numbers separated by commas", "write it like 0.01,0.02,0.05"
        ) from None


def show(compared: api.Comparisons, as_json: bool, path: Path | None) -> None:
    """Print the comparisons, and write them as Markdown to `path`, if it is given."""
    parts = list(zip(compared, compared.changes, compared.failures, strict=True))
    if path is not None:
        record.write_text(path, "\n".join(compare_text.markdown(*part) for part in parts))
    if as_json:
        for part in parts:
            print(compare_json.data(*part).to_json())
        return
    terminal = console.terminal()
    for part in parts:
        terminal.print(Text(compare_text.title(part[0])), style="bold")
        for table in compare_text.tables(*part):
            console.show(table, terminal)
