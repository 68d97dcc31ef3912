"""The worker's clock. It times phases and the laps inside them, and writes an event to disk at each change.

Each phase ends when the next one begins, so the phases add up to the wall time.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from buzzer.models.api.context import SCORE, Result, Steps
from buzzer.suite.run import events
from buzzer.suite.run.events import Event, PartDone, PhaseEnded, PhaseStarted

REPORT_S = 1.0  # least time between two reports of progress


def process_age() -> float:
    """Seconds since the kernel started this process (10 ms resolution); 0 if unavailable."""
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError):
        return 0.0


def resident_peak(reset: bool) -> int:
    """Peak resident bytes since the last reset (Linux VmHWM); 0 if unavailable.

    Writing 5 to clear_refs sets the peak back to the current size, which gives each phase its own peak.
    """
    try:
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:", 1)[1].split(None, 1)[0]) * 1024
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return peak
    except (OSError, IndexError):
        return 0


class Clock:
    """Times the phases of a run. Phase `score` is the last one; the wall time ends where it begins.

    `overhead_s`: seconds of the clock's own bookkeeping, part of the wall time.
    """

    def __init__(
        self,
        file: IO[str],
        now: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.process_time,
        synchronize: Callable[[], None] = lambda: None,
        age: float = 0.0,
    ) -> None:
        self._events, self._now, self._cpu, self._synchronize = file, now, cpu, synchronize
        self._start = now() - age
        self._cpu_begin = 0.0
        self._laps: list[float] = []
        self._lap = self._start
        self._reported = self._start
        self.overhead_s = 0.0
        self._open("start", self._start)

    def phase(self, name: str) -> None:
        """End the running phase and begin phase `name`. If `name` is the running phase, mark a lap instead.

        Raises RuntimeError for a phase after `score`: its time would not be counted.
        """
        self._synchronize()
        t = self._now()
        if name == self._name:
            self._laps.append(t - self._lap)
            self._lap = t
        elif self._name == SCORE:
            raise RuntimeError(f"phase {name} comes after {SCORE}, which must be the last phase")
        else:
            self._close(t)
            self._open(name, t)
            self.overhead_s += self._now() - t

    def report(self, share: float) -> None:
        """Write that a share (0 to 1) of the running phase is done, unless the last report was less than REPORT_S ago."""
        t = self._now()
        if t - self._reported >= REPORT_S:
            self._reported = t
            self._write(PartDone(float(min(max(0.0, share), 1.0)), t - self._start))
            self.overhead_s += self._now() - t

    def stop(self) -> float:
        """End the last phase. Returns the wall time: seconds from the start of the process to the beginning of `score`, or else to now."""
        self._synchronize()
        t = self._now()
        self._close(t)
        self.overhead_s += self._now() - t
        return (self._begin if self._name == SCORE else t) - self._start

    def _open(self, name: str, t: float) -> None:
        self._name, self._begin, self._lap, self._laps = name, t, t, []
        self._write(PhaseStarted(name, t - self._start, self._start))

    def _close(self, t: float) -> None:
        if self._laps:
            self._laps.append(t - self._lap)
        cpu = self._cpu()
        cpu_s, peak = cpu - self._cpu_begin, resident_peak(reset=True)
        self._write(PhaseEnded(self._name, t - self._begin, cpu_s, peak, self._laps))
        self._cpu_begin = cpu

    def _write(self, event: Event) -> None:
        self._events.write(events.to_line(event))
        self._events.flush()


def run(steps: Steps, clock: Clock) -> tuple[Result, float]:
    """Run a task's generator to its end under the clock. Returns its result and the wall time in seconds."""
    while True:
        try:
            clock.phase(next(steps))
        except StopIteration as end:
            return end.value, clock.stop()
