"""`buzzer show`: explains one record."""

from pathlib import Path
from typing import Annotated

import typer

from buzzer.errors import UsageError
from buzzer.suite.cli import options
from buzzer.suite.cli.options import OUTPUT, option
from buzzer.suite.records import layout, record
from buzzer.suite.records.checks import check_one
from buzzer.suite.report import record_text
from buzzer.suite.report.console import show, terminal
from buzzer.suite.report.table import plain_text

EXAMPLES = """Examples:

buzzer show results/local/booking/MACHINE/FILE.json

buzzer show 1f5033d2
"""
LEAST_DIGITS = 4  # of a run_id that is looked up


def main(
    name: Annotated[
        str,
        typer.Argument(
            help="A record's file, or the first digits of its run_id, which end the file's name.",
            metavar="RECORD",
        ),
    ],
    source: Annotated[
        Path, option(OUTPUT, "Folder of records to search for a run_id.", "--in", metavar="FOLDER")
    ] = Path("results"),
    as_json: options.Json = False,
) -> None:
    """Explain one record: how the run ended, against which limits and which reference, its phases, its files, and how to do it again."""
    path = found(name, source)
    r = record.read(path)
    if as_json:
        print(r.model_dump_json())
        return
    to = terminal()
    to.print(plain_text(record_text.title(r)), style="bold")
    for table in record_text.tables(r):
        show(table, to)
    folder = layout.files(layout.root(path, r), r.run_id)
    files = [nearby(file) for file in sorted(folder.iterdir())] if folder.is_dir() else []
    for line in record_text.closing(r, path, files, check_one(r)):
        to.print(plain_text(line), soft_wrap=True)


def nearby(path: Path) -> Path:
    """The path, relative to the working folder if it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def found(name: str, source: Path) -> Path:
    """The file of a record, given as a path or by the first digits of its run_id. Raises UsageError unless there is exactly one."""
    if Path(name).is_file():
        return Path(name)
    digits = name.lower()
    if len(digits) < LEAST_DIGITS or set(digits) - set("0123456789abcdef"):
        raise UsageError(f"{name}: no such record", "give its file, or the first digits of its run_id")
    folders = [source, source / layout.LOCAL]
    paths = list(dict.fromkeys(record.paths(f for f in folders if f.is_dir())))
    named = layout.run_name(digits)
    matches = [p for p in paths if p.stem.rpartition("-")[2].startswith(named)]
    if len(matches) != 1:
        many = f"{len(matches)} records" if matches else "no record"
        raise UsageError(f"{many} under {source} have a run_id that begins with {name}", "see also --in")
    return matches[0]
