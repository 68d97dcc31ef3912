"""The process that does one run: `python -m buzzer.suite.run.worker SPEC.json`. The harness starts it under limits.

It writes an event to the events file at each change, so that the harness can write a record even if this process is killed.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from buzzer import extras, plugins
from buzzer.engine import faults
from buzzer.engine.device import limit_memory, nvml, own_memory, require_torch_cuda
from buzzer.errors import BuzzerError, UnsupportedError, disk_full
from buzzer.models.api import progress
from buzzer.models.api.context import SCORE, RunContext, Steps, Task
from buzzer.suite.run import clock, counters, events
from buzzer.suite.run.events import Done, Failed
from buzzer.suite.run.imports import Imports
from buzzer.suite.run.spec import WorkerSpec

PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>
OUTCOMES = {faults.MEMORY: "device-oom", faults.LACKING: "unsupported", faults.REFUSED: "unsupported"}


def load_entry(entry: str, name: str) -> Task:
    """The object that `module:attr` names, the entry of the task or model `name`. Raises UnsupportedError if there is none."""
    task: Task = plugins.resolve(entry, f"{name}'s entry")
    return task


def device_synchronize(device: str) -> Callable[[], None]:
    """A function that waits for the device, so that the clock is not read while the device still works.

    Raises UnsupportedError if there is no CUDA device.
    """
    if device == "cpu":
        return lambda: None
    import torch

    require_torch_cuda()
    return torch.cuda.synchronize


class Device:
    """Measures the GPU memory of one run. Creates the CUDA context and sets the run's limit of GPU memory."""

    def __init__(self, context: RunContext, synchronize: Callable[[], None]) -> None:
        self._nvml = nvml()
        self._before = counters.gpu_memory_used(self._nvml)
        synchronize()
        if context.gpu_memory_bytes:
            limit_memory(context.gpu_memory_bytes)
        self.opened = self._taken()

    def _taken(self) -> int | None:
        now = counters.gpu_memory_used(self._nvml)
        return None if now is None or self._before is None else max(now - self._before, 0)

    def memory(self) -> dict[str, int | None]:
        """Bytes of GPU memory: `opened` (used by the CUDA context) and `held` (used now), both by NVML, and the process's own counters."""
        return {"opened": self.opened, "held": self._taken()} | own_memory()


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exception itself, or all exceptions in an exception group, at any depth. rapidsmpf runs its actors in task groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def failure(error: BaseException) -> Failed:
    """The closing event for an exception. The traceback of an unexpected exception goes to stderr, and so into the record."""
    first = next(leaves(error))
    ours = next((e for e in leaves(error) if isinstance(e, BuzzerError)), None)
    if ours is not None:
        outcome = "unsupported" if isinstance(ours, UnsupportedError) else "error"
        # `user_error`: the input is wrong, not the program.
        return Failed(outcome, ours.message, ours.hint, {"user_error": True})
    lacking = (e.name for e in leaves(error) if isinstance(e, ModuleNotFoundError) and extras.hint(e.name))
    if package := next(lacking, None):
        return Failed("unsupported", f"this run needs the package {package}", extras.hint(package))
    text = f"{type(first).__name__}: {first}"
    if fault := next(filter(None, map(faults.classify, (error, *leaves(error)))), None):
        traceback.print_exception(error)
        return Failed(OUTCOMES[fault.kind], text, fault.hint)
    if any(disk_full(e) for e in leaves(error)):
        hint = "free some space, or set BUZZER_CACHE and TMPDIR to folders on a larger disk"
        return Failed("error", f"the disk is full: {text}", hint, {"user_error": True})
    if any(isinstance(e, MemoryError) for e in leaves(error)):
        return Failed("host-oom", text, "")
    traceback.print_exception(error)
    return Failed("error", text, "")


def main(path: str) -> int:
    """Do the run of a spec file. Returns the exit code: 0 if the run ended without an error, else 1."""
    spec = WorkerSpec.from_json(Path(path).read_text())
    # A message may contain a file name that is not valid text. Characters that cannot be encoded become "?".
    with spec.events.open("a", encoding="utf-8", errors="replace") as file:
        for name in (spec.events, Path(path)):  # the task must not find these files by name
            name.unlink(missing_ok=True)
        last = attempt(spec, file)
        file.write(events.to_line(last))
    return 0 if isinstance(last, Done) else 1


def at_score(steps: Steps, act: Callable[[], None]) -> Steps:
    """The same steps. Calls `act` when phase `score` begins."""
    acted = False
    while True:
        try:
            phase = next(steps)
        except StopIteration as end:
            return end.value
        if phase == SCORE and not acted:
            acted = True
            act()
        yield phase


def checked_files(steps: Steps, out: Path) -> Steps:
    """The same steps. Raises RuntimeError if a result file was written after `score` began, when the clock had stopped."""
    before: list[dict[Path, tuple[int, int]]] = []
    result = yield from at_score(
        steps, lambda: before.append({path: size_and_time(path) for path in out.rglob("*")})
    )
    if before and (
        changed := [path.name for path in result.files if before[0].get(path) != size_and_time(path)]
    ):
        raise RuntimeError(f"{', '.join(changed)} changed after phase {SCORE} began")
    return result


def size_and_time(path: Path) -> tuple[int, int]:
    """Size of a file and time of its last change, in nanoseconds."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def attempt(spec: WorkerSpec, file: IO[str]) -> Done | Failed:
    """Run the task and write its phases to `file`. Returns the closing event."""
    context, imports = spec.context, Imports().start()
    try:
        # Phase `start` begins when the process is started, so it includes the interpreter and the imports.
        synchronize = device_synchronize(context.device)
        ticker = clock.Clock(file, synchronize=synchronize, age=clock.process_age())
        device = Device(context, synchronize) if context.device == "cuda" and not context.clustered else None
        if spec.verb == "fit":
            progress.listen(ticker.report)
        steps = checked_files(getattr(load_entry(spec.entry, context.task), spec.verb)(context), context.out)
        result, wall_s = clock.run(at_score(steps, imports.stop), ticker)
        gpu = {"gpu_bytes": device.memory()} if device is not None else {}
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  every failure becomes an event
        return failure(error)
    finally:
        imports.stop()
    return Done(
        wall_s=wall_s,
        overhead_s=ticker.overhead_s,
        scores=dict(result.scores),
        rows=result.rows,
        details=dict(result.details) | gpu | {"import_s": imports.seconds},
        notes=list(result.notes),
        samples={name: list(values) for name, values in result.samples.items()},
        files=[path.name for path in result.files],
        bench=result.bench,
        work=result.work,
    )


def die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process when the harness dies, even by `kill -9` and without its reaper."""
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    die_with_parent()
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is on disk. Unloading the libraries can take a second that no phase would count.
    os._exit(code)
