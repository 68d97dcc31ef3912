"""`buzzer report`: renders records as a leaderboard."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from buzzer.suite import api
from buzzer.suite.bench import groups
from buzzer.suite.bench.groups import BenchGroup
from buzzer.suite.cli import options
from buzzer.suite.cli.options import OUTPUT, option
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.records import repetitions
from buzzer.suite.records.collection import some_record_files
from buzzer.suite.records.repetitions import RunGroup
from buzzer.suite.records.schema import Record

EXAMPLES = """Examples:

buzzer report results/local

buzzer report results --html board.html --csv records.csv
"""


def main(
    path: options.Paths = None,
    out: Annotated[
        Path | None, option(OUTPUT, "Markdown file to write; default: stdout.", metavar="FILE")
    ] = None,
    html: Annotated[Path | None, option(OUTPUT, "Self-contained HTML page to write.", metavar="FILE")] = None,
    csv: Annotated[
        Path | None, option(OUTPUT, "CSV file to write, a row for each record.", metavar="FILE")
    ] = None,
    svg: Annotated[Path | None, option(OUTPUT, "SVG image of the tables to write.", metavar="FILE")] = None,
    readme: Annotated[
        Path | None,
        option(
            OUTPUT,
            "File in which to replace the findings and the result table between their markers.",
            metavar="FILE",
        ),
    ] = None,
    headline: Annotated[
        Path | None,
        option(
            OUTPUT,
            "SVG image to write of published times and ours against the budget; a dark one is written beside it.",
            metavar="FILE",
        ),
    ] = None,
    frontier: Annotated[
        Path | None,
        option(
            OUTPUT,
            "SVG image to write of a model's accuracy against its latency; its data are written to a CSV file beside it.",
            metavar="FILE",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Render records as Markdown (stdout, or --out), an HTML page, CSV, a README's table: whatever is asked for."""
    display = ProgressDisplay()  # not opened: signals end it at once
    sources = some_record_files(path or [Path("results")])
    targets = {
        "out": out,
        "html": html,
        "csv": csv,
        "svg": svg,
        "readme": readme,
        "headline": headline,
        "frontier": frontier,
    }
    text, records = api.reported(sources, api.Outputs(**targets), display)
    written = [target for target in targets.values() if target is not None]
    for target in written:
        typer.echo(f"wrote {target}", err=True)
    if as_json:
        print_json(records)
    elif not written:
        print(text, end="")


def print_json(records: Sequence[Record]) -> None:
    """Print one record per line: the boards of tasks, then those of models, best first, then all others, such as fits. The field
    `ranked` says whether it has a rank there."""
    shown: list[RunGroup | BenchGroup] = []
    for group in repetitions.boards(records).values():
        shown += repetitions.rows(group)
    for group in groups.boards(records).values():
        shown += groups.rows(group)
    ranked = {r.run_id: (r, row.ranked) for row in shown for r in row.records}
    others = {r.run_id: (r, False) for r in records if r.run_id not in ranked}
    for r, has_rank in (ranked | others).values():
        print(json.dumps({"ranked": has_rank} | r.model_dump(mode="json")))
