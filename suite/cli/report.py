"""`buzzer report`: renders records as a leaderboard."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from buzzer.suite import api
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.records import repetitions
from buzzer.suite.records.collection import some_record_files
from buzzer.suite.records.schema import Record


def main(
    path: Annotated[list[Path] | None, typer.Argument(help="Records or folders of records.")] = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write; default: stdout.")] = None,
    readme: Annotated[
        Path | None,
        typer.Option(
            help="File in which to replace the findings and the result table between their markers."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Self-contained HTML page to write.")] = None,
    svg: Annotated[Path | None, typer.Option(help="SVG image of the tables to write.")] = None,
    headline: Annotated[
        Path | None,
        typer.Option(
            help="SVG image to write of published times and ours against the budget; a dark one is written beside it."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one record per line, best first.")] = False,
) -> None:
    """Render records as Markdown (stdout, or --out), an HTML page, a README's table: whatever is asked for."""
    display, sources = (
        ProgressDisplay(),
        some_record_files(path or [Path("results")]),
    )  # not opened: signals end it at once
    if as_json:
        print_json(api.valid(sources, display))
        return
    text = api.report(
        sources, out=out, html=html, readme=readme, svg=svg, headline=headline, observer=display
    )
    written = [target for target in (out, html, readme, svg, headline) if target is not None]
    for target in written:
        typer.echo(f"wrote {target}", err=True)
    if not written:
        print(text, end="")


def print_json(records: Sequence[Record]) -> None:
    """Print one record per line, best first. The field `ranked` says whether it has a rank on the leaderboard."""
    for group in repetitions.boards(records).values():
        for row in repetitions.rows(group):
            for r in row.records:
                print(json.dumps({"ranked": row.ranked} | r.model_dump(mode="json")))
