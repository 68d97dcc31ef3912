"""`buzzer compare`: compares runs of one task on several engines, backends, devices, budgets and scales."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from buzzer.errors import UsageError
from buzzer.suite import api
from buzzer.suite.cli.run import exit_with, params_of
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.config_file import MOST_REPEATS, MOST_SEED
from buzzer.suite.records import record
from buzzer.suite.report import compare_json, compare_text, console
from buzzer.suite.requests import DEFAULT_OUT, CompareRequest, names


def main(
    task: Annotated[str, typer.Argument(help="Task name.")],
    from_: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Compare the records here and run nothing; repeatable."),
    ] = None,
    engine: Annotated[str, typer.Option(help="Feature engines, separated by commas, or all.")] = "",
    backend: Annotated[str, typer.Option(help="Inference backends, separated by commas, or all.")] = "",
    precision: Annotated[str, typer.Option(help="Precisions, separated by commas.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu, cuda or both; default: what the engine runs on.")] = "",
    budget: Annotated[
        str, typer.Option(help="Budgets, separated by commas; default: seed-cpu, and the same on all cores.")
    ] = "",
    scale: Annotated[str, typer.Option(help="Scales of generated data, separated by commas.")] = "",
    train_scale: Annotated[
        float | None,
        typer.Option(
            help="Share of the official training rows: a sample of those of --scale; default: all of them."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the official files.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed for data and training.")] = 0,
    repeat: Annotated[
        int, typer.Option(min=1, max=MOST_REPEATS, help="Rounds; each runs every variant once.")
    ] = 5,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A task parameter, key=value.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = DEFAULT_OUT,
    full: Annotated[float, typer.Option(help="Scale of the full job, to which times are projected.")] = 1.0,
    full_budget: Annotated[
        str, typer.Option(help="Budget of the full job; default: that of each variant.")
    ] = "",
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Older records to compare with, of today or of at least two days."),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(help="FIGURE:PERCENT, such as wall:5%: fail if it is that much worse than --against."),
    ] = None,
    price: Annotated[str, typer.Option(help="Dollars per hour: cpu=NUMBER_OR_NAME,cuda=...")] = "",
    markdown: Annotated[Path | None, typer.Option(help="Markdown file to write as well.")] = None,
    on_unmet_budget: Annotated[
        str, typer.Option(help="fail or warn if the machine has less than the budget.")
    ] = "fail",
    resume: Annotated[
        bool,
        typer.Option(help="Skip runs that have an ok record in --out, and go on with an interrupted one."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object per comparison.")] = False,
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
        repeat=repeat,
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
        record.check_writable(markdown.parent)
    with ProgressDisplay() as display:
        compared = api.compare(request, out=out, observer=display)
    show(compared, as_json, markdown)
    if not compared or any(change.failed for changes in compared.changes for change in changes):
        raise typer.Exit(1)
    if not from_:
        exit_with(compared.records)


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
    pairs = list(zip(compared, compared.changes, strict=True))
    if path is not None:
        record.write_text(path, "\n".join(compare_text.markdown(m, c) for m, c in pairs))
    if as_json:
        for comparison, changes in pairs:
            print(compare_json.data(comparison, list(changes)).to_json())
        return
    terminal = console.terminal()
    for comparison, changes in pairs:
        terminal.print(Text(compare_text.title(comparison)), style="bold")
        for table in compare_text.tables(comparison, list(changes)):
            console.show(table, terminal)
