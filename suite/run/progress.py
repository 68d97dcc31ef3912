"""What the child tells of its run, a JSON object a line, held against the harness's own clock.

The task runs in the process that writes these lines, so it can write any. The lines are therefore believed only as far as they fit
each other, and the times in them as far as they fit the times at which the harness looked: both processes read one monotonic clock.
"""

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from buzzer.models.api.context import SCORE
from buzzer.suite.records.record import Phase

START_S = 5.0  # what making the control group and the process takes at the most
SAME_S = 1e-3  # by which two times that the clock took as one may differ
# By which the harness's own time may differ from one that the run told: seconds, and share of it.
SLACK_S, SLACK = 0.5, 0.02
STAMP_S = 0.05  # the same for the times of files
DONE = {  # what the event of a job's end has
    "wall_s": float,
    "overhead_s": float,
    "scores": dict,
    "rows": int,
    "details": dict,
    "notes": list,
    "samples": dict,
    "files": list,
}
# What reading a line raises that is no event; pydantic's ValidationError is a ValueError.
NO_EVENT = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass
class RunProgress:
    """What the child told in its events file, so far, and when the harness looked there."""

    phases: dict[str, Phase] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    running: str = ""
    running_since_s: float = 0.0
    closed_s: float | None = None  # when the running phase ended; None while it goes on
    born_s: float | None = None  # when the child was started, by the clock of both processes
    end: dict[str, Any] | None = None
    broken: str | None = None  # the first line that is no event, or does not fit the ones before it
    # By the same clock: the last look before the line of `score` was there, and of the end; the first look at each.
    unscored_s: float | None = None
    unended_s: float | None = None
    scored_s: float | None = None
    ended_s: float | None = None

    @property
    def scoring(self) -> bool:
        """Whether what is compared has ended."""
        return self.running == SCORE

    @property
    def done(self) -> bool:
        """Whether the job told that it ended well."""
        return self.end is not None and self.end["event"] == "done" and self.broken is None

    def take_line(self, line: str) -> None:
        """Take an event as it stands in the file; one that is none is remembered, and nothing after it is taken."""
        if self.broken is not None:
            return
        try:
            event = json.loads(line)
            json.dumps(event, ensure_ascii=False).encode()  # lone surrogates cannot be written into a record
            self.take(event)
        except NO_EVENT:
            self.broken = line.rstrip()[:80]

    def take(self, event: dict[str, Any]) -> None:
        """Take an event. Raises one of `NO_EVENT` for one that the clock cannot have written here."""
        if self.end is not None:
            raise ValueError("a line after the end")
        match event["event"]:
            case "phase":
                self._open(str(event["name"]), event["at_s"], event["born_s"])
            case "end":
                name, wall_s = event["name"], event["wall_s"]
                if name != self.running or self.closed_s is not None:
                    raise ValueError(f"{name} ends, which does not run")
                self._close(name, wall_s, event["cpu_s"], event["peak_memory_bytes"])
                self.closed_s = self.running_since_s + wall_s
                self.samples.setdefault(name, []).extend(event["laps"] or [wall_s])
            case "done":
                for name, kind in DONE.items():
                    if not isinstance(event[name], kind):
                        raise TypeError(f"{name} is no {kind}")
                if self.running and not self._fits(event["wall_s"]):
                    raise ValueError("a wall time that is not the phases'")
                self.end = event
            case "failed":
                self.end = event | {name: str(event[name]) for name in ("outcome", "message", "hint")}
            case other:
                raise ValueError(f"no event {other}")

    def _open(self, name: str, at_s: float, born_s: float) -> None:
        if not math.isfinite(at_s + born_s):
            raise ValueError("a time that is no number")
        if self.born_s is not None and born_s != self.born_s:
            raise ValueError("another time of birth")
        if self.born_s is not None and not (self.closed_s is not None and abs(self.closed_s - at_s) < SAME_S):
            raise ValueError("a phase that does not begin where the one before it ended")
        if self.scoring:
            raise ValueError(f"a phase after {SCORE}")
        self.running, self.running_since_s, self.closed_s, self.born_s = name, at_s, None, born_s

    def _fits(self, wall_s: float) -> bool:
        """Whether the clock had stopped, and the wall time is what the phases make."""
        made = self.running_since_s if self.scoring else self.closed_s
        return self.closed_s is not None and made is not None and abs(wall_s - made) < SAME_S

    def _close(self, name: str, wall_s: float, cpu_s: float, peak: int) -> None:
        before = self.phases.get(name, Phase(name=name, wall_s=0, cpu_s=0, peak_memory_bytes=0))
        self.phases[name] = Phase(
            name=name,
            wall_s=before.wall_s + wall_s,
            cpu_s=before.cpu_s + cpu_s,
            peak_memory_bytes=max(before.peak_memory_bytes, peak),
        )

    def cut(self, wall_s: float) -> None:
        """Close the phase in which the run was ended from outside."""
        if self.running and self.closed_s is None:
            self._close(self.running, max(wall_s - self.running_since_s, 0.0), 0.0, 0)

    def age_s(self, elapsed: float) -> float:
        """Seconds since the child was started, of `elapsed` since the parent began to start it."""
        if self.born_s is None:
            return elapsed
        return min(max(time.perf_counter() - self.born_s, elapsed - START_S, 0.0), elapsed)

    def looked(self, before_s: float) -> None:
        """Note that the harness has read all that was there at `before_s`, by the clock of both processes."""
        now = time.perf_counter()
        if self.scoring:
            self.scored_s = self.scored_s or now
        else:
            self.unscored_s = before_s
        if self.end is not None:
            self.ended_s = self.ended_s or now
        else:
            self.unended_s = before_s

    def contradiction(self, started_s: float) -> str:
        """What a run that told its end said of times and the harness saw otherwise, or "".

        `started_s` is when the harness started the process. At a look that found no line of `score`, scoring had not begun: a
        wall time that ends before it is false, however busy the machine was. The same at the first look that found it.
        """
        if self.end is None or not self.done or self.born_s is None:
            return ""
        told = self.end["wall_s"]
        slack = SLACK_S + SLACK * told
        last, first = (self.unscored_s, self.scored_s) if self.scoring else (self.unended_s, self.ended_s)
        if last is not None and told + slack < last - self.born_s:
            return f"that it took {told:.2f} s; after {last - self.born_s:.2f} s it was still at work"
        if first is not None and told > first - self.born_s + slack:
            return f"that it took {told:.2f} s; it had ended after {first - self.born_s:.2f} s"
        if self.born_s < started_s - SLACK_S:
            return f"that it was born {started_s - self.born_s:.2f} s before it was started"
        return ""

    def changed_later(self, folder: Path) -> list[str]:
        """Files of the result, under `folder`, that were changed after `score` began, or are not there.

        By the times that the kernel writes and no program sets; empty where the file system's clock cannot be compared.
        """
        if self.end is None or not self.done or self.born_s is None or not self.scoring:
            return []
        names = [Path(str(name)).name for name in self.end["files"]]
        try:
            probe = folder / f".probe-{os.getpid()}"
            probe.touch()
            told, now = probe.stat().st_ctime_ns, time.perf_counter()
            probe.unlink()
        except OSError:
            return []
        if told % 10**9 == 0:  # whole seconds only
            return []
        began = self.born_s + self.running_since_s + STAMP_S
        return [name for name in names if not made_before(folder / name, began - now, told)]


def made_before(path: Path, since_now_s: float, now_ns: int) -> bool:
    """Whether a file was last changed before the moment `since_now_s` from now, which is `now_ns` by its file system."""
    try:
        return (path.stat().st_ctime_ns - now_ns) / 1e9 <= since_now_s
    except OSError:
        return False


class Events:
    """Reads the growing events file from where it stopped the last time.

    The file is opened here before the child starts; the child opens it by its name once, and takes the name away before it imports the task.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("x+b")
        self._offset = 0
        self.story = RunProgress()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self) -> RunProgress:
        """Take the new lines."""
        before = time.perf_counter()
        if os.fstat(self._file.fileno()).st_size < self._offset:
            self.story.broken = self.story.broken or "(what had been written there was cut)"
        self._file.seek(self._offset)
        for line in self._file:
            if not line.endswith(b"\n"):
                break  # the child is in the middle of this line, or died there
            self._offset += len(line)
            self.story.take_line(line.decode(errors="replace"))
        self.story.looked(before)
        return self.story
