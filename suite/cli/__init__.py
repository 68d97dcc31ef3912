"""The command line: one module a verb. stdout is data, stderr is progress; exit codes 0 ok, 1 a run failed, 2 usage."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from buzzer import __version__
from buzzer.errors import BuzzerError
from buzzer.suite.cli import bench, check, compare, data, env, listing, report, run

app = typer.Typer(
    name="buzzer",
    help="Recommender and competition inference benchmarks: CPU against GPU under time and memory budgets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run.main)
app.command("bench")(bench.main)
app.command("list")(listing.main)
app.command("check")(check.main)
app.command("compare")(compare.main)
app.command("report")(report.main)
app.command("env")(env.main)
app.add_typer(data.app, name="data")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options before the verb."""


def main() -> None:
    """Run the command line; every expected problem ends in one message, a hint and exit code 2."""
    try:
        app()
    except BuzzerError as error:
        console = Console(stderr=True)
        console.print(f"[red]error:[/] {escape(error.message)}", highlight=False, soft_wrap=True)
        if error.hint:
            console.print(f"hint: {escape(error.hint)}", highlight=False, soft_wrap=True)
        sys.exit(2)
