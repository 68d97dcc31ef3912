"""Runs the worker process under its limits, and follows its events until it ends or must be stopped."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import buzzer
from buzzer.suite.budget import Budget
from buzzer.suite.run import limits
from buzzer.suite.run.limits import Limiter, Measured, Reason
from buzzer.suite.run.progress import EventReader, Part, RunProgress

POLL_S = 0.2  # seconds between two readings of the events
GIVE_UP_S = 30.0  # seconds to wait for a process that cannot be killed (it hangs in the kernel)
TAIL_LINES, TAIL_BYTES, LINE_CHARS = 60, 1 << 16, 800  # the traceback of a nested exception group is long
FLOOD_BYTES = 1 << 26  # disk space that the stderr of a run may use
# Phase, elapsed seconds, and how much of the phase of a fit is done.
PhaseCallback = Callable[[str, float, Part | None], None]


def supervise(
    limiter: Limiter,
    command: Sequence[str],
    stderr: Path,
    budget: Budget,
    events: EventReader,
    on_progress: PhaseCallback,
    spent_s: float = 0.0,
) -> tuple[Measured, float]:
    """Run the command in a thread and follow its events. Returns what was measured, and the seconds from its start to its end.

    A run that is over its time limit is stopped: the budget's limit before `score`, the limit for scoring after it. Ctrl-C may be
    pressed at any time and more than once: the run is stopped, and the reason is `INTERRUPTED`. spent_s: seconds that earlier sittings of
    the run took of the budget's time.
    """
    measured, errors, over = list[Measured](), list[str](), threading.Event()
    environment = limits.environment_of(budget) | {"PYTHONPATH": python_path(), "PYTHONSAFEPATH": "1"}

    def work() -> None:
        try:
            measured.append(limiter.run(command, stderr, environment))
        except BaseException as error:  # noqa: BLE001  BenchExec exits the program if a group is missing
            errors.append(f"{type(error).__name__}: {error}")
        finally:
            over.set()

    reason, began_s, stopping_s = Reason.SELF, time.perf_counter(), 0.0
    threading.Thread(target=work, daemon=True).start()
    while True:
        try:
            if reason is not Reason.SELF:
                limiter.stop()
                stopping_s = stopping_s or time.perf_counter()
            if over.wait(POLL_S) or (stopping_s and time.perf_counter() - stopping_s > GIVE_UP_S):
                break
            progress, elapsed_s = events.read(), time.perf_counter() - began_s
            if progress.scoring:
                limiter.freeze_peak()
            on_progress(progress.running, elapsed_s, progress.part(progress.age_s(elapsed_s)))
            truncate_flood(stderr)
            if reason is Reason.SELF:
                reason = over_time(progress, progress.age_s(elapsed_s), budget, spent_s)
        except KeyboardInterrupt:
            reason = Reason.INTERRUPTED
        except BaseException:
            limiter.stop()
            raise
    age_s = events.read().age_s(time.perf_counter() - began_s)
    result = measured[0] if measured else Measured(Reason.FAILED, 1, None, None, "".join(errors))
    return (result if reason is Reason.SELF else replace(result, reason=reason)), age_s


def over_time(progress: RunProgress, age_s: float, budget: Budget, spent_s: float = 0.0) -> Reason:
    """Why a run must be stopped now: `TIME`, `SCORING` or `LINGERING`; `SELF` for a run that may continue."""
    if progress.end is not None:
        now = time.perf_counter()
        late = now - (progress.ended_read_s or now) > limits.LINGER_S
        return Reason.LINGERING if late else Reason.SELF
    if budget.time_s is None:
        return Reason.SELF
    if not progress.scoring:
        return Reason.TIME if age_s + spent_s > budget.time_s else Reason.SELF
    late = age_s - progress.running_since_s > limits.scoring_s(budget)
    return Reason.SCORING if late else Reason.SELF


def python_path() -> str:
    """The value of PYTHONPATH with which the worker imports the same `buzzer` package, from a checkout or an installation."""
    home = str(Path(buzzer.__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([home, *filter(None, inherited)])  # an empty entry would be the working folder


def truncate_flood(path: Path) -> None:
    """Free the disk space of a very long stderr. The run continues to write at its offset, so the file then has a hole."""
    with suppress(OSError):
        if path.stat().st_blocks * 512 > FLOOD_BYTES:
            os.truncate(path, 0)


def stderr_tail(path: Path) -> list[str]:
    """The last lines of a run's stderr; long lines are cut."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(-min(file.seek(0, os.SEEK_END), TAIL_BYTES), os.SEEK_END)
        lines = file.read().lstrip(b"\0").decode(errors="replace").splitlines()
    return [line[:LINE_CHARS] for line in lines[-TAIL_LINES:]]
