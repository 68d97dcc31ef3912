"""`buzzer run`: fits tasks if needed, then does the timed runs. Writes a record for each run and the leaderboard."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from buzzer.errors import UsageError
from buzzer.suite import config_file
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.config_file import MOST_REPEATS, MOST_SEED
from buzzer.suite.records import record
from buzzer.suite.records.schema import Record
from buzzer.suite.report import leaderboard
from buzzer.suite.report.console import show, show_boards
from buzzer.suite.report.format import clock_text
from buzzer.suite.report.table import table
from buzzer.suite.requests import DEFAULT_OUT, RunRequest
from buzzer.suite.run import plan, resolve, task_runs
from buzzer.suite.run.executor import Executor
from buzzer.suite.run.plan import RunPlan


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options in a YAML file as defaults. Flags on the command line override them."""
    if path is not None:
        context.default_map = config_file.read(path)
    return path


def main(
    context: typer.Context,
    task: Annotated[list[str] | None, typer.Argument(help="Task names; none = the default suite.")] = None,
    engine: Annotated[str, typer.Option(help="Feature engines, separated by commas, or all.")] = "",
    backend: Annotated[str, typer.Option(help="Inference backends, separated by commas, or all.")] = "",
    precision: Annotated[
        str, typer.Option(help="Precisions, separated by commas; default or all: the task's.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda; default: what the engine runs on.")] = "",
    budget: Annotated[
        str, typer.Option(help="Budgets, separated by commas: names or 1c20g24h; default: seed-cpu.")
    ] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of the official files; default: generated data.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Share of the official size to generate.")] = None,
    train_scale: Annotated[
        float | None,
        typer.Option(
            help="Share of the official training rows: a sample of those of --scale; default: all of them."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed for data and training.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, max=MOST_REPEATS, help="Timed runs of each variant.")] = 1,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            "--gpus",
            min=0,
            help="Dask workers to distribute a run over; with GPU engines, one per GPU.",
        ),
    ] = 0,
    scheduler: Annotated[
        str, typer.Option(help="Address of a running Dask cluster to use: tcp://host:8786.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = DEFAULT_OUT,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A task parameter, key=value.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with these options; flags override it.", callback=read_config, is_eager=True
        ),
    ] = None,
    on_unmet_budget: Annotated[
        str, typer.Option(help="fail or warn if the machine has less than the budget.")
    ] = "fail",
    resume: Annotated[
        bool,
        typer.Option(help="Skip runs that have an ok record in --out, and go on with an interrupted one."),
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one record per line.")] = False,
) -> None:
    """Run tasks on engines and backends under budgets. Writes a record for each run and the leaderboard."""
    request = RunRequest(
        tasks=task
        or (context.default_map or {}).get("task", ()),  # click does not read arguments from default_map
        engines=engine,
        backends=backend,
        precisions=precision,
        device=device,
        budget=budget,
        data=data,
        scale=scale,
        train_scale=train_scale,
        seed=seed,
        repeat=repeat,
        workers=workers,
        scheduler=scheduler,
        params=params_of(set_ or []),
        on_unmet_budget=on_unmet_budget,
        resume=resume,
    )
    planned = resolve.run_plan(request)
    if dry_run:
        show_plan(planned, as_json)
        return
    with ProgressDisplay() as display:
        executor = Executor(out, display, resume)
        made = list(task_runs.execute(planned, executor))
    finish(made, executor.records, out, as_json)


def params_of(pairs: Sequence[str]) -> dict[str, str]:
    """The pairs of `--set key=value` as a mapping. Raises UsageError for one without `=`."""
    params = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: not of the form key=value")
        params[key] = value
    return params


def show_plan(planned: RunPlan, as_json: bool) -> None:
    """Print the planned runs on stdout, and on stderr what this machine lacks for them."""
    for warning in planned.warnings:
        typer.echo(f"warning: {warning}", err=True)
    runs = planned.timed
    lines = [
        {
            "task": r.task.name,
            "engine": r.engine,
            "backend": r.backend,
            "precision": r.precision,
            "device": r.device,
            "budget": r.budget.name,
            "scale": r.scale,
            "train_scale": r.train_scale,
            "seed": r.seed,
            "repeat": r.repeat,
            "cluster": r.cluster,
        }
        for r in runs
    ]
    if as_json:
        for line in lines:
            print(json.dumps(line))
        return
    worst = plan.worst_case_s(runs)
    limit = f"at worst {clock_text(worst)}" if worst < float("inf") else "no time limit"
    texts = [[shown(value) for value in line.values()] for line in lines]
    title = f"{len(runs)} timed runs (and a fit for each task that has none in the cache)"
    show(table(title, lines[0] if lines else (), texts, caption=limit))


def shown(value: str | float | None) -> str:
    """A value in a cell of the plan."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def finish(new: Sequence[Record], records: Sequence[Record], out: Path, as_json: bool) -> None:
    """Print the `new` records of this call, write the leaderboard of all `records` of the folder, and set the exit code."""
    board = out / "leaderboard.md"
    try:
        record.write_text(board, leaderboard.markdown(records))
    finally:  # also if the disk is full
        if as_json:
            for r in new:
                print(r.model_dump_json())
        else:
            show_boards(new)
    if not as_json:
        print(f"report: {board}")
    exit_with(new)


def exit_with(records: Sequence[Record]) -> None:
    """Exit with code 1 if a run failed or was wrong."""
    if any(r.outcome not in ("ok", "unsupported") for r in records):
        raise typer.Exit(1)
