"""`buzzer report`: the leaderboard from records."""

import json
from pathlib import Path
from typing import Annotated

import typer

from buzzer.errors import DataError, UsageError
from buzzer.suite import page, record
from buzzer.suite import readme as result_table
from buzzer.suite import report as leaderboard
from buzzer.suite.screen import picture


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
    """Render the leaderboard of records as Markdown, published figures marked as such."""
    sources = path or [Path("results")]
    for source in sources:
        if not source.exists():
            raise UsageError(f"{source}: no such file or folder")
    records, files = [], {}
    for file in record.paths(sources):
        try:
            records.append(record.read(file))
            files[records[-1].run_id] = file
        except DataError as error:
            typer.echo(f"left out: {error.message}", err=True)
    if as_json:
        for group in leaderboard.boards(records).values():
            for row in leaderboard.rows(group):
                for r in row.records:
                    print(json.dumps({"ranked": row.ranked} | r.model_dump(mode="json")))
        return
    if html is not None:
        record.write_text(html, page.html(records, page.links_of(files, html)))
        typer.echo(f"wrote {html}", err=True)
        return
    if readme is not None:
        fill_readme(readme, records)
        return
    if svg is not None:
        record.write_text(svg, picture(records))
        typer.echo(f"wrote {svg}", err=True)
        return
    text = leaderboard.markdown(records)
    if out is None:
        print(text, end="")
    else:
        record.write_text(out, text)
        typer.echo(f"wrote {out}", err=True)


def fill_readme(path: Path, records: list[record.Record]) -> None:
    """Write the result table into a README, between its markers."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    record.write_text(path, result_table.fill(text, records))
    typer.echo(f"filled {path}", err=True)
