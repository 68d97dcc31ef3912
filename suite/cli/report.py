"""`buzzer report`: the leaderboard from records."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from buzzer.errors import UsageError
from buzzer.suite.escape import printable
from buzzer.suite.records import integrity, record, repetitions
from buzzer.suite.records.record import Record
from buzzer.suite.report import leaderboard, page
from buzzer.suite.report import readme as result_table
from buzzer.suite.report.console import picture


def main(
    path: Annotated[list[Path] | None, typer.Argument(help="Records or folders of records.")] = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write; default: stdout.")] = None,
    readme: Annotated[
        Path | None, typer.Option(help="File whose result table, between two markers, to fill in.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Self-contained HTML page to write.")] = None,
    svg: Annotated[Path | None, typer.Option(help="SVG image of the tables to write.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One record a line, best first, on stdout.")
    ] = False,
) -> None:
    """Render records as Markdown (stdout, or --out), an HTML page, a README's table: whatever is asked for."""
    records, files = load(path or [Path("results")])
    if as_json:
        print_json(records)
        return
    made: dict[Path, Callable[[], str]] = {}
    if out is not None:
        made[out] = lambda: leaderboard.markdown(records)
    if html is not None:
        made[html] = lambda: page.html(records, page.links_of(files, html))
    if readme is not None:
        made[readme] = lambda: result_table.fill(text_of(readme), records)
    if svg is not None:
        made[svg] = lambda: picture(records)
    for target, render in made.items():
        record.write_text(target, render())
        typer.echo(f"wrote {target}", err=True)
    if not made:
        print(leaderboard.markdown(records), end="")


def load(sources: Sequence[Path]) -> tuple[list[Record], dict[str, Path]]:
    """The records of files and folders that pass `buzzer check`, and the file of each run_id; others are told of and left out."""
    checked = integrity.examine(found(sources))
    for path, problems in checked.problems.items():
        if problems:
            typer.echo(printable(f"left out: {path}: {'; '.join(problems)}"), err=True)
    files = {r.run_id: path for path, r in checked.good.items()}
    return list(checked.good.values()), files


def found(sources: Sequence[Path]) -> list[Path]:
    """The record files among files and folders. Raises UsageError for a path that is not there."""
    for source in sources:
        if not source.exists():
            raise UsageError(printable(f"{source}: no such file or folder"))
    return record.paths(sources)


def print_json(records: Sequence[Record]) -> None:
    for group in repetitions.boards(records).values():
        for row in repetitions.rows(group):
            for r in row.records:
                print(json.dumps({"ranked": row.ranked} | r.model_dump(mode="json")))


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
