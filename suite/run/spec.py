"""The spec of a worker process: one JSON file, which the harness writes and the worker reads once."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from buzzer.models.api.context import RunContext

PATHS = ("data", "work", "out", "partial")  # fields of RunContext that are paths; they are strings in JSON


@dataclass(frozen=True)
class WorkerSpec:
    """The task to run, how to run it, and where to write its events."""

    context: RunContext
    verb: str  # method of the task: "fit", "predict" or "bench"
    entry: str  # `module:attr` of the task
    events: Path  # the file that the worker appends its events to

    def to_json(self) -> str:
        """The spec as one JSON object."""
        context = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.context).items()}
        fields = {"context": context, "verb": self.verb, "entry": self.entry, "events": str(self.events)}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The spec in a text that `to_json` returned."""
        fields = json.loads(text)
        context: dict[str, Any] = {
            k: Path(v) if k in PATHS and v is not None else v for k, v in fields["context"].items()
        }
        return cls(RunContext(**context), fields["verb"], fields["entry"], Path(fields["events"]))
