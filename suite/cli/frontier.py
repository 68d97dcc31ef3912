"""`buzzer bench bert --frontier`: runs the precision task whole and cut, then draws accuracy against latency."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from buzzer.errors import UsageError
from buzzer.suite import registry
from buzzer.suite.cli.progress import ProgressDisplay
from buzzer.suite.cli.run import choice, run_all
from buzzer.suite.records import record
from buzzer.suite.records.record import Record
from buzzer.suite.report import charts, console, frontier
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
    drawn = frontier.frontier(records, full, registry.task(TASK).reference.backend)
    out = Path(options["out"])
    record.write_text(out / "frontier.csv", drawn.to_csv())
    record.write_text(out / "frontier.svg", charts.svg(frontier.chart(found, records, drawn.title)))
    if options["as_json"]:
        print(drawn.to_json())
        return
    console.show(drawn.table())
    print(f"chart: {out / 'frontier.svg'}, its data: {out / 'frontier.csv'}")
