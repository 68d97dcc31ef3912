"""`--dry-run`: shows the plan of a command, and runs nothing."""

from collections.abc import Sequence
from pathlib import Path

import typer

from buzzer.suite.records import integrity
from buzzer.suite.report import plan_text
from buzzer.suite.report.console import show
from buzzer.suite.run import task_runs
from buzzer.suite.run.estimates import Estimates
from buzzer.suite.run.plan import Planned, RunPlan


def show_plan(plan: RunPlan, out: Path, as_json: bool) -> None:
    """Print the planned runs of tasks on stdout, and on stderr what this machine lacks for their budgets."""
    for warning in plan.warnings:
        typer.echo(f"warning: {warning}", err=True)
    items = [planned for _, planned in task_runs.checked_runs(plan)]
    show_items(items, out, as_json, sized=plan.data is None)


def show_items(items: Sequence[Planned], out: Path, as_json: bool, sized: bool = True) -> None:
    """Print planned runs, with estimates from the valid records in `out`.

    sized: whether the size of the data is known; that of given files is not, because they are checked only before a run.
    """
    estimates = Estimates(integrity.good_in(out)) if sized else None
    if as_json:
        for line in plan_text.json_lines(items, estimates):
            print(line)
    else:
        show(plan_text.plan_table(items, estimates))
