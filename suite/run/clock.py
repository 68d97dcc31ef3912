"""The clock: phases that add up to the wall time, laps inside a phase, and a line on disk at each change.

It runs in the child. Each phase is closed by the opening of the next, so no time can fall between two phases.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from buzzer.models.api.context import SCORE, Result, Steps


def process_age() -> float:
    """Seconds since the kernel started this process (10 ms resolution); 0 where that is not told."""
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError):
        return 0.0


def resident_peak(reset: bool) -> int:
    """Peak resident bytes since the last reset (Linux VmHWM); 0 where the kernel does not tell.

    Writing 5 to clear_refs sets the mark back to the current size, which gives each phase its own peak.
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
    """Times a job's phases. Phase `score` is the last, and the wall time ends where it begins.

    `overhead_s` is what the clock's own bookkeeping took; it lies inside the wall time.
    """

    def __init__(
        self,
        events: IO[str],
        now: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.process_time,
        synchronize: Callable[[], None] = lambda: None,
        age: float = 0.0,
    ) -> None:
        self._events, self._now, self._cpu, self._synchronize = events, now, cpu, synchronize
        self._start = now() - age
        self._cpu_begin = 0.0
        self._laps: list[float] = []
        self._lap = self._start
        self.overhead_s = 0.0
        self._open("start", self._start)

    def phase(self, name: str) -> None:
        """Close the running phase and open `name`; the running phase's own name again marks a lap.

        Raises RuntimeError for a phase after `score`: its time would be left out.
        """
        self._synchronize()
        t = self._now()
        if name == self._name:
            self._laps.append(t - self._lap)
            self._lap = t
        elif self._name == SCORE:
            raise RuntimeError(f"phase {name} comes after {SCORE}, which must be a job's last phase")
        else:
            self._close(t)
            self._open(name, t)
            self.overhead_s += self._now() - t

    def stop(self) -> float:
        """Close the last phase; the seconds from the start of the process to its end, or to the beginning of `score`."""
        self._synchronize()
        t = self._now()
        self._close(t)
        self.overhead_s += self._now() - t
        return (self._begin if self._name == SCORE else t) - self._start

    def _open(self, name: str, t: float) -> None:
        self._name, self._begin, self._lap, self._laps = name, t, t, []
        self._write({"event": "phase", "name": name, "at_s": t - self._start, "born_s": self._start})

    def _close(self, t: float) -> None:
        if self._laps:
            self._laps.append(t - self._lap)
        cpu = self._cpu()
        self._write(
            {
                "event": "end",
                "name": self._name,
                "wall_s": t - self._begin,
                "cpu_s": cpu - self._cpu_begin,
                "peak_memory_bytes": resident_peak(reset=True),
                "laps": self._laps,
            }
        )
        self._cpu_begin = cpu

    def _write(self, event: dict[str, Any]) -> None:
        self._events.write(json.dumps(event) + "\n")
        self._events.flush()


def run(steps: Steps, clock: Clock) -> tuple[Result, float]:
    """Drive a job's generator to its end under the clock: its result and the wall time in seconds."""
    while True:
        try:
            clock.phase(next(steps))
        except StopIteration as end:
            return end.value, clock.stop()
