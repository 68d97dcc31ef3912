"""`buzzer run`: fits tasks if needed, then does the timed runs. Writes a record for each run and the leaderboard."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from buzzer.errors import UsageError
from buzzer.suite import config_file, registry
from buzzer.suite.cli import dry_run as plans
from buzzer.suite.cli import options
from buzzer.suite.cli.options import LIMITS, OUTPUT, option
from buzzer.suite.cli.outcome import exit_with
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.records import integrity, layout, record
from buzzer.suite.records.schema import Record
from buzzer.suite.report import leaderboard, rerun
from buzzer.suite.report.console import show_boards
from buzzer.suite.requests import DEFAULT_OUT, RunRequest
from buzzer.suite.run import resolve, task_runs
from buzzer.suite.run.executor import Executor

EXAMPLES = """Examples:

buzzer run booking --engine pandas,polars --backend all --rounds 3

buzzer run recsys2021 --budget 1c2g90s --dry-run

buzzer run all --dry-run
"""


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options in a YAML file as defaults. Flags on the command line override them."""
    if path is not None:
        context.default_map = config_file.read(path)
    return path


def main(
    context: typer.Context,
    task: Annotated[
        list[str] | None,
        typer.Argument(
            help="Task names, separated by commas or spaces, or all; none = the default suite.",
            autocompletion=options.completes(options.task_names),
            metavar="TASK...",
        ),
    ] = None,
    engine: options.Engine = "",
    backend: options.Backend = "",
    precision: options.Precision = "",
    device: options.Device = "",
    budget: options.Budget = "",
    data: options.Data = None,
    scale: options.Scale = None,
    train_scale: options.TrainScale = None,
    seed: options.Seed = 0,
    rounds: options.Rounds = 1,
    workers: Annotated[
        int,
        option(
            LIMITS,
            "Dask workers to distribute a run over; with GPU engines, one per GPU.",
            *("--workers", "--gpus"),
            metavar="N",
        ),
    ] = 0,
    scheduler: Annotated[
        str,
        option(LIMITS, "Address of a running Dask cluster to use: tcp://host:8786.", metavar="ADDRESS"),
    ] = "",
    out: options.Out = DEFAULT_OUT,
    set_: options.Set = None,
    config: Annotated[
        Path | None,
        option(
            OUTPUT,
            "YAML file with these options; flags override it.",
            metavar="FILE",
            callback=read_config,
            is_eager=True,
        ),
    ] = None,
    on_unmet_budget: options.OnUnmetBudget = "fail",
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
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
        rounds=rounds,
        workers=workers,
        scheduler=scheduler,
        params=params_of(set_ or []),
        on_unmet_budget=on_unmet_budget,
        resume=resume,
    )
    planned = resolve.run_plan(request)
    if dry_run:
        plans.show_plan(planned, out, as_json)
        return
    with ProgressDisplay() as display:
        executor = Executor(out, display, resume)
        made = list(task_runs.execute(planned, executor))
    finish(made, out, as_json)
    exit_with(made, display.ended_by)


def params_of(pairs: Sequence[str]) -> dict[str, str]:
    """The pairs of `--set key=value` as a mapping. Raises UsageError for one without `=`."""
    params = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: not of the form key=value")
        params[key] = value
    return params


def finish(new: Sequence[Record], out: Path, as_json: bool) -> None:
    """Print the `new` records of this call, and write the leaderboard of all records of the folder, also of those that other calls have
    written meanwhile."""
    board = out / "leaderboard.md"
    try:
        record.write_text(board, leaderboard.markdown(integrity.good_in(out)))
    finally:  # also if the disk is full
        if as_json:
            for r in new:
                print(r.model_dump_json())
        else:
            show_boards(new)
    if as_json:
        return
    for line in (*submissions(new, out), *rerun.references(new)):
        print(line)
    print(f"report: {board}")


def submissions(records: Sequence[Record], out: Path) -> Iterator[str]:
    """A line with the path of each submission that the runs wrote, or of each file if the task names no submission."""
    for r in records:
        folder, named = layout.files(out, r.run_id), registry.task(r.task).submission
        what = "submission" if named else "file"
        for file in sorted(folder.glob(named or "*")):
            yield f"{what} of {r.engine_name} {r.backend} {r.precision}: {file}"
