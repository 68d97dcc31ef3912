"""`buzzer run`: fit if needed, then the timed predict job; a record each."""

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
    """Take the options of a YAML file as the defaults; flags win."""
    if path is not None:
        context.default_map = config_file.read(path)
    return path


def main(
    context: typer.Context,
    task: Annotated[list[str] | None, typer.Argument(help="Task names; none = the default suite.")] = None,
    engine: Annotated[str, typer.Option(help="Feature engines, by comma, or all.")] = "",
    backend: Annotated[str, typer.Option(help="Inference backends, by comma, or all.")] = "",
    precision: Annotated[str, typer.Option(help="Precisions, by comma; default or all: the task's.")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda; default: what the engine runs on.")] = "",
    budget: Annotated[
        str, typer.Option(help="Budgets, by comma: names or 1c20g24h; default: seed-cpu.")
    ] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of the official files; default: generated data.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Share of the official size to generate.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of data and training.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, max=MOST_REPEATS, help="Timed runs of each variant.")] = 1,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            "--gpus",
            min=0,
            help="Dask workers to share a run out over; GPU engines: a GPU each.",
        ),
    ] = 0,
    scheduler: Annotated[str, typer.Option(help="Running Dask cluster to use: tcp://host:8786.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = DEFAULT_OUT,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A task parameter, key=value.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of these options; flags win.", callback=read_config, is_eager=True),
    ] = None,
    on_unmet_budget: Annotated[str, typer.Option(help="fail or warn when the machine has less.")] = "fail",
    resume: Annotated[bool, typer.Option(help="Skip what already has an ok record in --out.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the plan, run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One record a line on stdout.")] = False,
) -> None:
    """Run tasks on engines and backends under budgets; write a record a run and the leaderboard."""
    request = RunRequest(
        tasks=task or (context.default_map or {}).get("task", ()),  # click takes no argument from there
        engines=engine,
        backends=backend,
        precisions=precision,
        device=device,
        budget=budget,
        data=data,
        scale=scale,
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
    """`--set key=value` as a mapping. Raises UsageError for one without `=`."""
    params = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: not of the form key=value")
        params[key] = value
    return params


def show_plan(planned: RunPlan, as_json: bool) -> None:
    """The planned runs on stdout, what the machine lacks for them on stderr."""
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
    texts = [[f"{v:g}" if isinstance(v, float) else str(v) for v in line.values()] for line in lines]
    title = f"{len(runs)} timed runs (and a fit where none is cached)"
    show(table(title, lines[0] if lines else (), texts, caption=limit))


def finish(made: Sequence[Record], records: Sequence[Record], out: Path, as_json: bool) -> None:
    """This call's records on stdout, the leaderboard of all `records` of the folder on disk, and the exit code."""
    board = out / "leaderboard.md"
    try:
        record.write_text(board, leaderboard.markdown(records))
    finally:  # also where the disk is full
        if as_json:
            for r in made:
                print(r.model_dump_json())
        else:
            show_boards(made)
    if not as_json:
        print(f"report: {board}")
    exit_with(made)


def exit_with(records: Sequence[Record]) -> None:
    """Exit code 1 where a run failed or was wrong."""
    if any(r.outcome not in ("ok", "unsupported") for r in records):
        raise typer.Exit(1)
