"""`buzzer list`: lists tasks, engines, backends, models, budgets and data sets."""

import json
from typing import Annotated, Any

import typer

from buzzer.configs import load_yaml
from buzzer.engine import frames, infer
from buzzer.suite import registry
from buzzer.suite.report.console import show
from buzzer.suite.report.table import table

EXAMPLES = """Examples:

buzzer list

buzzer list --json
"""


def main(as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False) -> None:
    """List tasks, engines, backends, models, budgets and data sets."""
    everything, origins = content(), registry.origins()
    if as_json:
        print(json.dumps(everything | {"plug-ins": origins}))
        return
    for title, entries in everything.items():
        added = origins.get(title, {})
        header = ("name", "summary", "plug-in of") if added else ("name", "summary")
        lines = []
        for name, entry in entries.items():
            summary = entry if isinstance(entry, str) else entry["summary"]
            lines.append((name, summary, added.get(name, "")) if added else (name, summary))
        show(table(title, header, lines))


def content() -> dict[str, dict[str, Any]]:
    """Everything that can be run, by kind and name. Imports no model."""
    return {
        "tasks": {name: task.model_dump() for name, task in registry.tasks().items()},
        "engines": {name: engine.summary for name, engine in frames.all_engines().items()},
        "backends": {name: backend.summary for name, backend in infer.all_backends().items()}
        | {
            pair: "networks on {}, boosted trees on {}".format(*infer.parts(pair))
            for pair in registry.backend_pairs()
        },
        "models of bench": {name: model.summary for name, model in registry.models().items()},
        "budgets": {
            n: f"{b['limits'] or 'whole machine'}: {b['why']}" for n, b in load_yaml("budgets.yaml").items()
        },
        "data sets": {name: title_of(registry.card(name)) for name in registry.datasets()},
    }


def title_of(card: str) -> str:
    """The first line of a data set's card, its title."""
    return card.lstrip("# \n").split("\n", 1)[0]
