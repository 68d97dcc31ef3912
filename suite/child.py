"""The process that does one run: `python -m buzzer.suite.child SPEC.json`, started by the parent under limits.

It writes what happens to the spec's events file, a JSON object a line, so that the parent can tell the tale
even when this process is killed.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from buzzer.engine import faults
from buzzer.engine.device import cuda_problem, limit_memory, own_memory
from buzzer.errors import BuzzerError, UnsupportedError
from buzzer.models.job import Job, Task
from buzzer.suite import clock

PATHS = ("data", "work", "out")
OUTCOMES = {faults.MEMORY: "device-oom", faults.LACKING: "unsupported", faults.REFUSED: "unsupported"}


def spec_of(job: Job, verb: str, entry: str, events: Path) -> dict[str, Any]:
    """What the parent writes for the child: the job as JSON and where to find the task."""
    plain = asdict(job) | {name: str(getattr(job, name)) for name in PATHS}
    return {"job": plain, "verb": verb, "entry": entry, "events": str(events)}


def load_entry(entry: str) -> Task:
    """The object that `module:attr` names."""
    module, _, attr = entry.partition(":")
    task: Task = getattr(importlib.import_module(module), attr)
    return task


def device_synchronize(device: str) -> Callable[[], None]:
    """What waits for the device, so that no clock is read while work is in flight."""
    if device == "cpu":
        return lambda: None
    import torch

    if not torch.cuda.is_available():
        problem = cuda_problem() or f"torch {torch.__version__} does not see it"
        raise UnsupportedError(f"no CUDA device here: {problem}", "`buzzer env` shows what this machine has")
    return torch.cuda.synchronize


def failure(error: BaseException) -> dict[str, Any]:
    """An exception as an outcome of the record."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, BuzzerError):
        outcome = "unsupported" if isinstance(error, UnsupportedError) else "error"
        details = {"user_error": True}  # the input's fault, not the program's
        told = {"message": error.message, "hint": error.hint, "details": details}
        return {"event": "failed", "outcome": outcome, **told}
    if fault := faults.of(error):
        traceback.print_exception(error)  # where it happened, for the record's stderr_tail
        return {"event": "failed", "outcome": OUTCOMES[fault.kind], "message": text, "hint": fault.hint}
    if isinstance(error, MemoryError):
        outcome = "host-oom"
    else:
        outcome = "error"
        traceback.print_exception(error)
    return {"event": "failed", "outcome": outcome, "message": text, "hint": ""}


def main(path: str) -> int:
    spec = json.loads(Path(path).read_text())
    fields: dict[str, Any] = {k: Path(v) if k in PATHS else v for k, v in spec["job"].items()}
    job = Job(**fields)
    with Path(spec["events"]).open("w", encoding="utf-8") as events:
        last = attempt(job, spec["verb"], spec["entry"], events)
        events.write(json.dumps(last) + "\n")
    return 0 if last["event"] == "done" else 1


def attempt(job: Job, verb: str, entry: str, events: IO[str]) -> dict[str, Any]:
    """Run the job; the closing event, `done` or `failed`."""
    try:
        # The clock opens phase `start` at the birth of the process: interpreter and imports are in it.
        ticker = clock.Clock(events, synchronize=device_synchronize(job.device), age=clock.process_age())
        if job.device == "cuda" and job.gpu_memory_bytes and not job.clustered:
            limit_memory(job.gpu_memory_bytes)
        result, wall_s = clock.run(getattr(load_entry(entry), verb)(job), ticker)
        own = {"gpu_bytes": own_memory()} if job.device == "cuda" and not job.clustered else {}
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  whatever it is, the record tells it
        return failure(error)
    return {
        "event": "done",
        "wall_s": wall_s,
        "overhead_s": ticker.overhead_s,
        "scores": dict(result.scores),
        "rows": result.rows,
        "details": dict(result.details) | own,
        "files": [str(f) for f in result.files],
        "notes": list(result.notes),
        "samples": {name: list(values) for name, values in result.samples.items()},
    }


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is on disk; tearing down the libraries can take a second of nobody's time
