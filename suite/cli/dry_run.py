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
    show_items([planned for _, planned in task_runs.checked_runs(plan)], out, as_json)


def show_items(items: Sequence[Planned], out: Path, as_json: bool) -> None:
    """Print planned runs, with estimates from the valid records in `out`."""
    estimates = Estimates(integrity.good_in(out))
    if as_json:
        for line in plan_text.json_lines(items, estimates):
            print(line)
    else:
        show(plan_text.plan_table(items, estimates))
