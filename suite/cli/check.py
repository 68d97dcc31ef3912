"""`buzzer check`: validate records."""

import json
from pathlib import Path
from typing import Annotated

import typer

from buzzer.errors import DataError, UsageError
from buzzer.suite import record


def main(
    path: Annotated[list[Path] | None, typer.Argument(help="Records or folders of records.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a record.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object a file on stdout.")] = False,
) -> None:
    """Validate records: schema, phases that add up, content hash. Exit code 1 if any is wrong."""
    if schema:
        print(json.dumps(record.schema(), indent=1))
        return
    found = record.paths(path or [Path("results")])
    if not found:
        raise UsageError("no records found", "give record files or folders that hold some")
    wrong = 0
    for file in found:
        try:
            record.read(file)
            problem = ""
        except DataError as error:
            problem = error.message
            wrong += 1
        if as_json:
            print(json.dumps({"path": str(file), "ok": not problem, "problem": problem}))
        elif problem:
            print(problem)
    typer.echo(f"{len(found) - wrong} of {len(found)} records are valid", err=True)
    if wrong:
        raise typer.Exit(1)
