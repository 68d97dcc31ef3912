"""`buzzer check`: validate records."""

import json
from pathlib import Path
from typing import Annotated

import typer

from buzzer import caches
from buzzer.datasets.contract import silent
from buzzer.errors import UsageError
from buzzer.suite import registry
from buzzer.suite.cli import options
from buzzer.suite.escape import printable
from buzzer.suite.records import integrity
from buzzer.suite.records.collection import some_record_files
from buzzer.suite.records.schema import json_schema
from buzzer.suite.run.worker import load_entry

EXAMPLES = """Examples:

buzzer check results

buzzer check results --data booking=/data/booking
"""


def main(
    path: options.Paths = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="TASK=FOLDER: the task's official records must have the fingerprint of these files."
        ),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a record.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object per file.")] = False,
) -> None:
    """Validate records: schema, content hash, consistent figures, budget, gate, proof of GPU use, data. Exit code 1 if one is wrong."""
    if schema:
        print(json.dumps(json_schema(), indent=1))
        return
    fingerprints = dict(fingerprint(text) for text in data or [])
    sources = path or [Path("results")]
    files = some_record_files(sources)
    is_set = len(files) > 1 or any(source.is_dir() for source in sources)
    checked = integrity.examine(files, fingerprints, whole=is_set)
    for file, problems in checked.problems.items():
        if as_json:
            print(json.dumps({"path": str(file), "ok": not problems, "problem": "; ".join(problems)}))
        elif problems:
            print(printable(f"{file}: {'; '.join(problems)}"))
    for file in checked.unseen:
        note = "its reference run is missing, so its gate was not checked"
        typer.echo(printable(f"note: {file}: {note}"), err=True)
    wrong = sum(bool(problems) for problems in checked.problems.values())
    typer.echo(f"{len(files) - wrong} of {len(files)} records are valid", err=True)
    if wrong:
        raise typer.Exit(1)


def fingerprint(text: str) -> tuple[str, str]:
    """The name of the task in a text such as `booking=DIR`, and the fingerprint of its files in DIR. Raises DataError for files that are not in the schema."""
    name, equals, folder = text.partition("=")
    if not equals or not Path(folder).is_dir():
        raise UsageError(f"--data {text}: not of the form TASK=FOLDER", "--data booking=/data/booking")
    config = registry.task(name)
    prepared = load_entry(config.entry, config.name).prepare(
        Path(folder), caches.folder() / "data", 1.0, 0, silent
    )
    return config.name, prepared.fingerprint
