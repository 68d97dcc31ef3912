"""Collects the events of a run and checks them against the harness's own clock.

The task runs in the process that writes the events, so it can write false ones. An event is therefore accepted only if it is
consistent with the events before it. Its times must be consistent with the times at which the harness read the file: both processes read
the same monotonic clock.
"""

import math
import os
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from buzzer.models.api.context import SCORE
from buzzer.suite.records.schema import Phase
from buzzer.suite.run import events
from buzzer.suite.run.events import Done, Event, Failed, PartDone, PhaseEnded, PhaseStarted

START_S = 5.0  # upper bound of the time that creating the control group and the process takes
SAME_S = 1e-3  # largest difference between two times that the clock read at once
# Largest allowed difference between the harness's time and a reported time: seconds, plus a share of the time.
SLACK_S, SLACK = 0.5, 0.02
LEAST_SHARE = 0.01  # of a phase that must be done for an estimate of the rest: the first steps are slower
STAMP_S = 0.05  # the same for file times, in seconds


class Part(NamedTuple):
    """How much of the running phase is done."""

    share: float  # 0 to 1
    left_s: float | None  # estimated seconds to the end of the phase; None before the first part is done


@dataclass
class RunProgress:
    """What a run has reported so far, and when the harness read it.

    Times named `..._read_s` are readings of `time.perf_counter` in the harness.
    """

    phases: dict[str, Phase] = field(default_factory=dict)  # ended phases, in the order of their first begin
    samples: dict[str, list[float]] = field(default_factory=dict)  # phase -> seconds of each lap
    running: str = ""  # the phase that began last
    running_since_s: float = 0.0  # seconds since the start of the process
    # What the running phase has reported: seconds since the start of the process, and the share that was done.
    parts: list[tuple[float, float]] = field(default_factory=list)
    closed_s: float | None = None  # the same when that phase ended; None while it runs
    born_s: float | None = None  # start of the process on the clock of both processes
    end: Done | Failed | None = None
    broken: str | None = None  # the first line that is not an event or contradicts an earlier line
    unscored_read_s: float | None = None  # the last reading that found `score` not begun
    unended_read_s: float | None = None  # the last reading that found the run not ended
    scored_read_s: float | None = None  # the first reading that found `score` begun
    ended_read_s: float | None = None  # the first reading that found the run ended

    @property
    def scoring(self) -> bool:
        """Whether phase `score` has begun."""
        return self.running == SCORE

    @property
    def done(self) -> Done | None:
        """The closing event of a run that reported a good end and no contradiction; else None."""
        return self.end if isinstance(self.end, Done) and self.broken is None else None

    def apply_line(self, line: str) -> None:
        """Apply the event of a line. The first line that is not accepted is kept in `broken`; all later lines are ignored."""
        if self.broken is not None:
            return
        try:
            self.apply(events.parse(line))
        except ValueError:  # also pydantic's ValidationError
            self.broken = line.rstrip()[:80]

    def apply(self, event: Event) -> None:
        """Apply an event. Raises ValueError for an event that the clock cannot have written at this point."""
        if self.end is not None:
            raise ValueError("a line after the end")
        match event:
            case PhaseStarted():
                self._start_phase(event)
            case PhaseEnded():
                self._end_phase(event)
            case PartDone():
                self._add_part(event)
            case Done():
                if self.running and not self._matches_phases(event.wall_s):
                    raise ValueError("the wall time is not the sum of the phases")
                self.end = event
            case Failed():
                self.end = event

    def _start_phase(self, event: PhaseStarted) -> None:
        if not math.isfinite(event.at_s + event.born_s):
            raise ValueError("a time is not finite")
        if self.born_s is not None and event.born_s != self.born_s:
            raise ValueError("the process has two different starts")
        if self.born_s is not None and not self._follows(event.at_s):
            raise ValueError("a phase does not begin where the one before it ended")
        if self.scoring:
            raise ValueError(f"a phase after {SCORE}")
        self.running, self.running_since_s = event.name, event.at_s
        self.closed_s, self.born_s, self.parts = None, event.born_s, []

    def _follows(self, at_s: float) -> bool:
        """Whether the previous phase ended at this time."""
        return self.closed_s is not None and abs(self.closed_s - at_s) < SAME_S

    def _end_phase(self, event: PhaseEnded) -> None:
        if event.name != self.running or self.closed_s is not None:
            raise ValueError(f"phase {event.name} ends but is not running")
        self._add(event.name, event.wall_s, event.cpu_s, event.peak_memory_bytes)
        self.closed_s = self.running_since_s + event.wall_s
        self.samples.setdefault(event.name, []).extend(event.laps or [event.wall_s])

    def _add_part(self, event: PartDone) -> None:
        last_s = self.parts[-1][0] if self.parts else self.running_since_s
        if self.closed_s is not None or not (0 <= event.share <= 1 and last_s <= event.at_s < math.inf):
            raise ValueError("a part that the running phase cannot have")
        self.parts.append((event.at_s, event.share))

    def part(self, age_s: float) -> Part | None:
        """How much of the running phase is done `age_s` seconds after the start of the process; None if it reports nothing.

        The estimate follows the second half of the phase so far, because the first may have found parts that an earlier fit had finished.
        """
        if not self.parts:
            return None
        at_s, share = self.parts[-1]
        half = bisect_right(self.parts, (self.running_since_s + at_s) / 2, key=lambda part: part[0])
        before_s, before = self.parts[half - 1] if half else (self.running_since_s, 0.0)
        if share - before < LEAST_SHARE:
            return Part(share, None)
        total_s = (1 - share) / (share - before) * (at_s - before_s)
        return Part(share, max(total_s - (age_s - at_s), 0.0))

    def _matches_phases(self, wall_s: float) -> bool:
        """Whether the last phase has ended, and the phases before `score` add up to the wall time."""
        total = self.running_since_s if self.scoring else self.closed_s
        return self.closed_s is not None and total is not None and abs(wall_s - total) < SAME_S

    def _add(self, name: str, wall_s: float, cpu_s: float, peak: int) -> None:
        before = self.phases.get(name, Phase(name=name, wall_s=0, cpu_s=0, peak_memory_bytes=0))
        self.phases[name] = Phase(
            name=name,
            wall_s=before.wall_s + wall_s,
            cpu_s=before.cpu_s + cpu_s,
            peak_memory_bytes=max(before.peak_memory_bytes, peak),
        )

    def close_phase(self, age_s: float) -> None:
        """End the running phase of a run that the harness has ended. `age_s`: seconds since the start of the process."""
        if self.running and self.closed_s is None:
            self._add(self.running, max(age_s - self.running_since_s, 0.0), 0.0, 0)

    def age_s(self, elapsed_s: float) -> float:
        """Seconds since the start of the process. `elapsed_s`: seconds since the harness began to start it."""
        if self.born_s is None:
            return elapsed_s
        return min(max(time.perf_counter() - self.born_s, elapsed_s - START_S, 0.0), elapsed_s)

    def note_reading(self, begun_s: float) -> None:
        """Note that the harness has read all lines that had been written by the time `begun_s`."""
        now = time.perf_counter()
        if self.scoring:
            self.scored_read_s = self.scored_read_s or now
        else:
            self.unscored_read_s = begun_s
        if self.end is not None:
            self.ended_read_s = self.ended_read_s or now
        else:
            self.unended_read_s = begun_s

    def contradiction(self, started_s: float) -> str:
        """What a run that ended without an error reported about its times although the harness's readings contradict it; "" if nothing.

        `started_s`: when the harness started the process. If a reading found no event of `score`, scoring had not begun: a shorter
        wall time is false, however busy the machine was. In the same way the first reading that found the event is an upper bound.
        """
        if self.done is None or self.born_s is None:
            return ""
        wall_s = self.done.wall_s
        slack = SLACK_S + SLACK * wall_s
        last, first = (self.unscored_read_s, self.scored_read_s)
        if not self.scoring:
            last, first = (self.unended_read_s, self.ended_read_s)
        if last is not None and wall_s + slack < last - self.born_s:
            return f"that it took {wall_s:.2f} s, but it was still working after {last - self.born_s:.2f} s"
        if first is not None and wall_s > first - self.born_s + slack:
            return f"that it took {wall_s:.2f} s, but it had ended after {first - self.born_s:.2f} s"
        if self.born_s < started_s - SLACK_S:
            return f"that its process began {started_s - self.born_s:.2f} s before it was started"
        return ""

    def changed_later(self, folder: Path) -> list[str]:
        """Names of the result files under `folder` that were changed after `score` began, or that do not exist.

        Judged by ctime, which the kernel sets and programs cannot. Empty if the file system's clock cannot be compared.
        """
        if self.done is None or self.born_s is None or not self.scoring:
            return []
        try:
            probe = folder / f".probe-{os.getpid()}"
            probe.touch()
            probed_ns, now = probe.stat().st_ctime_ns, time.perf_counter()
            probe.unlink()
        except OSError:
            return []
        if probed_ns % 10**9 == 0:  # the file system has whole seconds only
            return []
        since_now_s = self.born_s + self.running_since_s + STAMP_S - now
        names = [Path(str(name)).name for name in self.done.files]  # the task may report items of any type
        return [name for name in names if not changed_before(folder / name, since_now_s, probed_ns)]


def changed_before(path: Path, since_now_s: float, now_ns: int) -> bool:
    """Whether a file was last changed before the time now + `since_now_s`. `now_ns`: the present time by its file system."""
    try:
        return (path.stat().st_ctime_ns - now_ns) / 1e9 <= since_now_s
    except (OSError, ValueError):  # ValueError: the name holds a null byte
        return False


class EventReader:
    """Reads a growing events file, each time from where the last reading stopped.

    The harness opens the file before the worker starts. The worker opens it once by name, and removes the name before it imports the
    task.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("x+b")
        self._offset = 0
        self.progress = RunProgress()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self) -> RunProgress:
        """Apply the new lines. Returns the progress so far."""
        begun_s = time.perf_counter()
        if os.fstat(self._file.fileno()).st_size < self._offset:
            self.progress.broken = self.progress.broken or "(the file was truncated)"
        self._file.seek(self._offset)
        for line in self._file:
            if not line.endswith(b"\n"):
                break  # the worker is in the middle of this line, or died there
            self._offset += len(line)
            self.progress.apply_line(line.decode(errors="replace"))
        self.progress.note_reading(begun_s)
        return self.progress
