"""`buzzer bench bert --frontier`: runs the precision task whole and cut, then draws accuracy against latency."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from buzzer.errors import UsageError
from buzzer.suite import registry
from buzzer.suite.cli.progress import ProgressDisplay
from buzzer.suite.cli.run import choice, run_all
from buzzer.suite.records import machine, record
from buzzer.suite.records.record import Record
from buzzer.suite.report import frontier
from buzzer.suite.report.console import WIDE, cells
from buzzer.suite.run.plan import Choice

TASK = "bert-intent-precision"
NAMES = ("bert", "minilm-l6")  # the task's own weights; else the path of a Hugging Face BERT folder


def run(model: str, options: dict[str, Any]) -> list[Record]:
    """Run what the frontier needs, write its data and chart beside the records, show the table; the records.

    Raises UsageError for a model that cannot be fine-tuned here.
    """
    if model not in NAMES and not Path(model).is_dir():
        known = f"known: {', '.join(NAMES)}; or a Hugging Face BERT folder with a tokenizer"
        raise UsageError(f"--frontier fine-tunes a BERT with real weights, {model} is none", known)
    task = registry.task(TASK)
    if model not in NAMES:
        task = task.with_params({"weights": json.dumps(str(Path(model).resolve()))})
    full = depth(task)
    planned = choices(task, full, options)
    with ProgressDisplay() as screen:
        made = run_all(planned, options, screen)
    hashes = {one.task.config_hash for one in planned}
    told = record.read_good(Path(options["out"])) if options["resume"] else made
    told = [r for r in told if (r.task, r.job) == (task.name, "predict") and r.config_hash in hashes]
    found = frontier.points(told, full)
    if found:
        publish(found, told, full, options)
    return made


def depth(task: registry.TaskConfig) -> int:
    """Layers of the task's encoder when it is not cut."""
    from buzzer.models.bert import encoder, weights

    return encoder.config_of(weights.folder(task.params["weights"])).num_hidden_layers


def choices(task: registry.TaskConfig, full: int, options: dict[str, Any]) -> list[Choice]:
    """The full model in every precision, then each cut one in FP32 and INT8."""
    given = options | {"engine": "", "scale": None, "set_": [], "repeat": options["rounds"]}
    made = [choice(task, given, {})]
    for layers in frontier.cuts(full):
        own = [f"layers={layers}", f"checkpoints={json.dumps(frontier.CUT_CHECKPOINTS)}"]
        kept = [p for p in made[0].precisions if p in frontier.CUT_PRECISIONS]
        made.append(choice(task, given | {"set_": own, "precision": ",".join(kept)}, {}))
    return made


def publish(
    found: Sequence[frontier.Point], records: Sequence[Record], full: int, options: dict[str, Any]
) -> None:
    """Data and chart on disk; the table, or with --json the data, on stdout."""
    first = records[0]
    title = f"{first.task}: accuracy against latency, {machine.describe(first.machine)}"
    base = frontier.reference(found, full, registry.task(first.task).reference.backend)
    notes = sorted({note for r in records for note in r.notes})
    facts = {
        "task": first.task,
        "full_layers": full,
        "reference_accuracy": base,
        "data_source": first.data_source,
        "machine": machine.describe(first.machine),
        "notes": notes,
    }
    out = Path(options["out"])
    record.write_text(out / "frontier.csv", frontier.csv_text(found))
    record.write_text(out / "frontier.svg", frontier.chart(found, title))
    if options["as_json"]:
        print(json.dumps(frontier.data(found, facts)))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    table = Table(title=Text(title), caption="* on the Pareto front", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in frontier.COLUMNS:
        table.add_column(name)
    for line in frontier.table(found, base):
        table.add_row(*cells(line))
    console.print(table)
    for note in notes:
        console.print(Text(f"- {note}"))
    print(f"chart: {out / 'frontier.svg'}, its data: {out / 'frontier.csv'}")
