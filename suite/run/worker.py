"""The process that does one run: `python -m buzzer.suite.run.worker SPEC.json`, started by the parent under limits.

It writes what happens to the spec's events file, a JSON object a line, so that the parent can tell the tale
even when this process is killed.
"""

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from buzzer.engine import faults
from buzzer.engine.device import limit_memory, no_cuda, nvml, own_memory
from buzzer.errors import BuzzerError, UnsupportedError
from buzzer.models.api.context import SCORE, Result, RunContext, Steps, Task
from buzzer.suite.run import clock, counters

PATHS = ("data", "work", "out")
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
OUTCOMES = {faults.MEMORY: "device-oom", faults.LACKING: "unsupported", faults.REFUSED: "unsupported"}


def spec_of(job: RunContext, verb: str, entry: str, events: Path) -> dict[str, Any]:
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
        raise UnsupportedError(no_cuda(), "`buzzer env` shows what this machine has")
    return torch.cuda.synchronize


class Device:
    """The GPU as one job opens and uses it: makes the CUDA context and sets the job's limit of GPU memory."""

    def __init__(self, job: RunContext, synchronize: Callable[[], None]) -> None:
        self._nvml = nvml()
        self._before = counters.gpu_memory_used(self._nvml)
        synchronize()
        if job.gpu_memory_bytes:
            limit_memory(job.gpu_memory_bytes)
        self.opened = self._taken()

    def _taken(self) -> int | None:
        now = counters.gpu_memory_used(self._nvml)
        return None if now is None or self._before is None else max(now - self._before, 0)

    def told(self) -> dict[str, int | None]:
        """Bytes: `opened`, what opening took, and `held`, what is taken now, by NVML; and what the process knows of itself."""
        return {"opened": self.opened, "held": self._taken()} | own_memory()


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exception, or those that it groups, at any depth: rapidsmpf runs its actors in task groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def failure(error: BaseException) -> dict[str, Any]:
    """An exception as an outcome of the record."""
    first = next(leaves(error))
    known = next((e for e in leaves(error) if isinstance(e, BuzzerError)), None)
    text = f"{type(first).__name__}: {first}"
    if known is not None:
        outcome = "unsupported" if isinstance(known, UnsupportedError) else "error"
        details = {"user_error": True}  # the input's fault, not the program's
        told = {"message": known.message, "hint": known.hint, "details": details}
        return {"event": "failed", "outcome": outcome, **told}
    if fault := next(filter(None, map(faults.classify, (error, *leaves(error)))), None):
        traceback.print_exception(error)  # where it happened, for the record's stderr_tail
        return {"event": "failed", "outcome": OUTCOMES[fault.kind], "message": text, "hint": fault.hint}
    if any(isinstance(e, MemoryError) for e in leaves(error)):
        outcome = "host-oom"
    else:
        outcome = "error"
        traceback.print_exception(error)
    return {"event": "failed", "outcome": outcome, "message": text, "hint": ""}


def main(path: str) -> int:
    spec = json.loads(Path(path).read_text())
    fields: dict[str, Any] = {k: Path(v) if k in PATHS else v for k, v in spec["job"].items()}
    job = RunContext(**fields)
    # A message may name a file whose name is no text: what cannot be encoded becomes "?".
    with Path(spec["events"]).open("a", encoding="utf-8", errors="replace") as events:
        for name in (spec["events"], path):  # what the task has no business with, it finds no name of
            Path(name).unlink(missing_ok=True)
        last = attempt(job, spec["verb"], spec["entry"], events)
        events.write(json.dumps(last, ensure_ascii=False) + "\n")
    return 0 if last["event"] == "done" else 1


def handed_in(steps: Steps, out: Path) -> Steps:
    """The steps. Raises RuntimeError where a file of the result was not there, as it is, when `score` began: the clock had stopped."""
    before: dict[Path, tuple[int, int]] | None = None
    while True:
        try:
            phase = next(steps)
        except StopIteration as end:
            result: Result = end.value
            break
        if phase == SCORE and before is None:
            before = {path: written(path) for path in out.rglob("*")}
        yield phase
    changed = [path.name for path in result.files if before is not None and before.get(path) != written(path)]
    if changed:
        raise RuntimeError(f"{', '.join(changed)} changed after phase {SCORE} began")
    return result


def written(path: Path) -> tuple[int, int]:
    """Size and time of the last change of a file."""
    told = path.stat()
    return told.st_size, told.st_mtime_ns


def attempt(job: RunContext, verb: str, entry: str, events: IO[str]) -> dict[str, Any]:
    """Run the job; the closing event, `done` or `failed`."""
    try:
        # The clock opens phase `start` at the birth of the process: interpreter and imports are in it.
        synchronize = device_synchronize(job.device)
        ticker = clock.Clock(events, synchronize=synchronize, age=clock.process_age())
        device = Device(job, synchronize) if job.device == "cuda" and not job.clustered else None
        steps = handed_in(getattr(load_entry(entry), verb)(job), job.out)
        result, wall_s = clock.run(steps, ticker)
        own = {"gpu_bytes": device.told()} if device is not None else {}
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  whatever it is, the record tells it
        return failure(error)
    return {
        "event": "done",
        "wall_s": wall_s,
        "overhead_s": ticker.overhead_s,
        "scores": dict(result.scores),
        "rows": result.rows,
        "details": dict(result.details) | own,
        "notes": list(result.notes),
        "samples": {name: list(values) for name, values in result.samples.items()},
        "files": [path.name for path in result.files],
    }


def die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process when the harness dies, be it by `kill -9` and its guard gone too."""
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    die_with_parent()
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is on disk; tearing down the libraries can take a second of nobody's time
