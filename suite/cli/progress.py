"""What the user sees on stderr while runs go on: bars, the phase, and the countdown to the buzzer."""

import signal
import threading
import time
from contextlib import suppress
from statistics import median
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from buzzer.errors import BuzzerError
from buzzer.models.api.context import SCORE
from buzzer.suite.budget import Budget
from buzzer.suite.records.record import Record
from buzzer.suite.report.format import clock_text

PATIENCE_S = 1.0  # within which pressing Ctrl-C again means the same: a run is ended and recorded by then
# What ends a suite in order; not every system has all of them.
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
UNSHOWN = (OSError, ValueError)  # what printing raises; UnicodeEncodeError and "closed file" are ValueErrors
MARKS = {"ok": "[green]✓[/]", "unsupported": "[yellow]-[/]"}


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class ProgressDisplay:
    """Bars on a terminal; one line a finished run everywhere.

    While it is open, Ctrl-C is taken up at the next look at a run, where the run can be ended in order and recorded:
    an interrupt at any other place could lose a record. A second Ctrl-C, a second later or more, interrupts at once. SIGTERM and SIGHUP, as
    schedulers and closed terminals send them, do the same.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._suite: TaskID | None = None
        self._run: TaskID | None = None
        self._pressed, self._pressed_at = 0, 0.0  # number of the signal that waits, and when it came
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        if threading.current_thread() is threading.main_thread():
            # nohup starts a program with SIGHUP ignored, and means it.
            heard = [n for n in ENDING if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._press) for number in heard}
        return self

    def _press(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._pressed and now - self._pressed_at >= PATIENCE_S:
            raise Interrupted(number)
        if not self._pressed:
            self._pressed, self._pressed_at = number, now

    def _take_up(self) -> None:
        """Raise the interrupt that is waiting, if one is."""
        if number := self._pressed:
            self._pressed = 0
            raise Interrupted(number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        with suppress(*UNSHOWN):
            self._bars.stop()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if isinstance(error, BuzzerError):
            self._take_up()  # the signal went to all processes: that one of them is gone is no error

    def say(self, text: str) -> None:
        """Show a line. A terminal that is gone, a full disk or a sign that cannot be shown does not end the suite."""
        with suppress(*UNSHOWN):
            self.console.print(text, highlight=False, soft_wrap=True, emoji=False)

    def plan(self, runs: int) -> None:
        """Announce how many runs there will be."""
        self._suite = self._bars.add_task("suite", total=runs, note=f"0 of {runs} runs")

    def preparing(self, share: float, what: str) -> None:
        """Progress of making or checking input data."""
        self._take_up()
        self._show("data", share, 1.0, what)

    def running(self, label: str, budget: Budget, phase: str, elapsed: float) -> None:
        """Where the run stands against its budget. Raises KeyboardInterrupt after a Ctrl-C."""
        self._take_up()
        if budget.time_s is None or phase == SCORE:
            self._show(label, None, None, f"{phase}  {clock_text(elapsed)}")
        else:
            left = clock_text(max(budget.time_s - elapsed, 0))
            self._show(label, elapsed, budget.time_s, f"{phase}  buzzer in {left}")

    def _show(self, label: str, done: float | None, total: float | None, note: str) -> None:
        if self._run is None:
            self._run = self._bars.add_task(label, total=total, note=note)
        self._bars.update(self._run, description=label, completed=done or 0, total=total, note=note)

    def clear(self) -> None:
        """Take the current run's bar away."""
        if self._run is not None:
            self._bars.remove_task(self._run)
            self._run = None

    def done(self, label: str, record: Record) -> None:
        """One line for a finished run, and a hint where there is one."""
        self.clear()
        self.say(f"{MARKS.get(record.outcome, '[red]✗[/]')} {escape(label)}: {escape(outcome_text(record))}")
        if record.hint:
            self.say(f"  hint: {escape(record.hint)}")
        if self._suite is not None:
            bar = self._bars.tasks[self._bars.task_ids.index(self._suite)]
            self._bars.update(
                self._suite, advance=1, note=f"{int(bar.completed) + 1} of {bar.total:.0f} runs"
            )


def outcome_text(record: Record) -> str:
    """`ok  accuracy 0.93  12.3 s, 4:47 before the buzzer`, or what went wrong."""
    if record.outcome != "ok":
        return f"{record.outcome}: {record.message}"
    score = record.scores.get(record.metric)
    parts = ["ok"] if score is None else ["ok", f"{record.metric} {score:.4f}"]
    if runs := record.samples.get("warm_run"):
        parts.append(f"p50 {1000 * median(runs):.2f} ms of {len(runs)} runs")
    parts.append(f"{record.wall_s:.1f} s")
    if record.budget.time_s is not None:
        parts.append(f"{clock_text(record.budget.time_s - record.wall_s)} before the buzzer")
    if record.disturbed is not None:
        parts.append(f"disturbed: others took {record.disturbed:.0%} of its cores")
    return "  ".join(parts)
