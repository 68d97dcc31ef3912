"""The command line, with one module per verb.

Results go to stdout, progress and messages to stderr. Exit codes: 0 ok; 1 a run failed or was wrong; 2 wrong usage, or nothing
that was asked for can run here; 128 + n ended by signal n.
"""

import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from buzzer import __version__, extras
from buzzer.errors import BuzzerError, UsageError
from buzzer.suite.cli import bench, check, compare, data, env, frontier, listing, report, run, show, streams
from buzzer.suite.cli.signals import ENDING, Interrupted

MEASURE, RECORDS, ABOUT = "Measure", "Read records", "This machine and the data"
EXAMPLES = """First steps:

buzzer list (what there is to run)

buzzer run booking --dry-run (what would run, and for how long)

buzzer run booking, then buzzer report results/local
"""


class Verbs(TyperGroup):
    """The group of all verbs. A signal ends a verb with one message, after unfinished files have been removed."""

    def invoke(self, context: Any) -> Any:  # Typer's copy of click's Context has a private name
        """Run a verb. Exits with code 128 + n if signal n ended it."""
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
    epilog=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for name, verb, group in (
    ("run", run, MEASURE),
    ("compare", compare, MEASURE),
    ("bench", bench, MEASURE),
    ("frontier", frontier, MEASURE),
    ("show", show, RECORDS),
    ("report", report, RECORDS),
    ("check", check, RECORDS),
    ("list", listing, ABOUT),
    ("env", env, ABOUT),
):
    app.command(name, rich_help_panel=group, epilog=verb.EXAMPLES)(verb.main)
app.add_typer(data.app, name="data", rich_help_panel=ABOUT)


def _version(requested: bool) -> None:
    if requested:
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
    """Run the command line. Every expected problem ends in one message, a hint and exit code 2."""
    streams.prepare()
    for number in ENDING:
        if number != signal.SIGINT and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, interrupt)
    try:
        try:
            check_arguments(sys.argv[1:])
            app()
        finally:
            streams.flush_stdout()
    except BuzzerError as error:
        fail(error.message, error.hint)
    except ModuleNotFoundError as error:  # of the core install
        if not (hint := extras.hint(error.name)):
            raise
        fail(f"this command needs the package {error.name}", hint)
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        sys.exit(1)
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        fail(
            f"{place}{error.strerror or error}",
            "is a disk full, or is a file or folder not writable for you?",
        )


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises UsageError for an argument that is not UTF-8: neither records nor Polars accept it as a path."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"argument {argument!a} is not UTF-8", "rename the file or folder") from error


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal: the first one ends the program in order, the second one at once."""
    signal.signal(number, signal.SIG_DFL)
    raise Interrupted(number)


def fail(message: str, hint: str) -> NoReturn:
    """Show an error with its hint on stderr and end with exit code 2."""
    console = Console(stderr=True)
    console.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    if hint:
        console.print(f"hint: {escape(hint)}", highlight=False, soft_wrap=True)
    sys.exit(2)
