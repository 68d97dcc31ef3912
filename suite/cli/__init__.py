"""The command line: one module a verb. stdout is data, stderr is progress; exit codes 0 ok, 1 a run failed, 2 usage, 128 + n signal n."""

import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from buzzer import __version__
from buzzer.errors import BuzzerError, UsageError
from buzzer.suite.cli import bench, check, compare, data, env, frontier, listing, report, run, streams
from buzzer.suite.cli.signals import ENDING, Interrupted


class Verbs(TyperGroup):
    """The verbs. A signal ends each of them with one line, after unfinished files have been removed."""

    def invoke(self, context: Any) -> Any:  # Typer has a copy of click's Context, whose name is private
        """Run a verb; exit code 128 + n where signal n ended it."""
        try:
            return super().invoke(context)
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            typer.echo(f"interrupted by {signal.Signals(number).name}", err=True)
            raise typer.Exit(128 + number) from error


app = typer.Typer(
    name="buzzer",
    cls=Verbs,
    help="Recommender and competition inference benchmarks: CPU against GPU under time and memory budgets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run.main)
app.command("bench")(bench.main)
app.command("frontier")(frontier.main)
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
    streams.prepare()
    for number in ENDING:
        if number != signal.SIGINT and signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, interrupt)
    try:
        try:
            check_arguments(sys.argv[1:])
            app()
        finally:
            streams.flush_stdout()
    except BuzzerError as error:
        fail(error.message, error.hint)
    except BrokenPipeError:  # `| head` has read enough
        sys.exit(1)
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        fail(f"{place}{error.strerror or error}", "is a disk full, or a file or folder not yours?")


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises UsageError for one that is not UTF-8, which neither records nor Polars take as a path."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"argument {argument!a} is not UTF-8", "rename the file or folder") from error


def interrupt(number: int, frame: FrameType | None) -> None:
    """Ends in order at the first signal, and at once at the second."""
    signal.signal(number, signal.SIG_DFL)
    raise Interrupted(number)


def fail(message: str, hint: str) -> NoReturn:
    """Show an error with its hint on stderr and end with exit code 2."""
    console = Console(stderr=True)
    console.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    if hint:
        console.print(f"hint: {escape(hint)}", highlight=False, soft_wrap=True)
    sys.exit(2)
