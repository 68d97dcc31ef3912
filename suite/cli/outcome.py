"""The exit code of commands that run something."""

import signal
from collections.abc import Sequence

import typer

from buzzer.suite.records.schema import Record
from buzzer.suite.run.runner import interrupted


def exit_with(records: Sequence[Record], ended_by: int = 0) -> None:
    """Exit with 128 + n if signal n (`ended_by`) stopped a run, with 1 if a run failed or was wrong, with 2 if no run could start here."""
    if any(interrupted(r) for r in records):
        raise typer.Exit(128 + (ended_by or signal.SIGINT))
    if any(r.outcome not in ("ok", "unsupported") for r in records):
        raise typer.Exit(1)
    timed = [r for r in records if r.job != "fit"]
    if timed and all(r.outcome == "unsupported" for r in timed):
        typer.echo("nothing was measured: this machine or installation can run none of it", err=True)
        raise typer.Exit(2)
