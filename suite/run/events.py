"""The events of a run. The worker process writes them to a file, one JSON object per line, and the harness reads them.

A run writes `PhaseStarted` and `PhaseEnded` in turn, beginning with phase `start`, and then one `Done` or one `Failed`. Between the start
and the end of a phase of a fit there may be `PartDone`. The field `event` of the JSON object names the kind of event. All times are in
seconds. This module checks the kind of an event and the types of its fields; `progress.py` checks whether it is consistent with the events before it.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any, get_origin

from buzzer.models.api.context import BenchResult, Work


@dataclass(frozen=True)
class PhaseStarted:
    """A phase begins."""

    name: str
    at_s: float  # seconds since the process was started
    born_s: float  # start of the process on the monotonic clock that worker and harness share


@dataclass(frozen=True)
class PhaseEnded:
    """The running phase ends."""

    name: str
    wall_s: float
    cpu_s: float  # CPU seconds of the worker process
    peak_memory_bytes: int  # highest resident size of the worker process; 0 if unavailable
    laps: list[float]  # seconds of each lap; empty if the phase has only one


@dataclass(frozen=True)
class PartDone:
    """A part of the running phase is done. Only for the progress display."""

    share: float  # of the phase, 0 to 1
    at_s: float  # seconds since the process was started


@dataclass(frozen=True)
class Done:
    """The run has ended without an error."""

    wall_s: float  # from the start of the process to phase `score`, or to the end if there is no such phase
    overhead_s: float  # the clock's own bookkeeping; part of `wall_s`
    scores: dict[str, float]
    rows: int  # rows predicted
    details: dict[str, Any]  # what the task reports about itself
    notes: list[str]
    samples: dict[str, list[float]]  # seconds that the task measured itself
    files: list[str]  # names of the result files, such as the submission
    bench: BenchResult | None = None  # only for `buzzer bench`
    work: Work | None = None  # of the models, for one row


@dataclass(frozen=True)
class Failed:
    """The run has ended with an exception."""

    outcome: str  # as in a record
    message: str
    hint: str
    details: dict[str, Any] = field(default_factory=dict)


Event = PhaseStarted | PhaseEnded | PartDone | Done | Failed
KINDS: Mapping[str, type[Event]] = {
    "phase_started": PhaseStarted,
    "phase_ended": PhaseEnded,
    "part_done": PartDone,
    "done": Done,
    "failed": Failed,
}
NAMES = {kind: name for name, kind in KINDS.items()}
PARTS: Mapping[str, type[BenchResult] | type[Work]] = {
    "bench": BenchResult,
    "work": Work,
}  # fields of Done that are objects


def to_line(event: Event) -> str:
    """The event as a line of JSON. Raises TypeError if the task's details cannot be written as JSON."""
    values = {"event": NAMES[type(event)]} | vars(event)
    for name in PARTS:
        if (part := getattr(event, name, None)) is not None:
            values[name] = asdict(part)
    return json.dumps(values, ensure_ascii=False) + "\n"


def parse(line: str) -> Event:
    """The event of a line. Raises ValueError for a line that is not an event."""
    try:
        values = json.loads(line)
        json.dumps(values, ensure_ascii=False).encode()  # a record cannot hold lone surrogates
        kind = KINDS[values["event"]]
        return kind(
            **{f.name: _value(f, values[f.name]) for f in fields(kind) if _required(f) or f.name in values}
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not an event: {type(error).__name__}: {error}") from error


def _required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _value(item: Field[Any], value: Any) -> Any:
    """The value of a field. Raises TypeError if its JSON type is not the field's."""
    if item.name in PARTS:
        return None if value is None else PARTS[item.name](**value)
    expected = get_origin(item.type) or item.type
    if type(value) is not expected:
        raise TypeError(f"{item.name} is {type(value).__name__} instead of {expected}")
    return value
