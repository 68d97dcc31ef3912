"""The command line's progress display: bars and lines on stderr. Defers signals until a run can be stopped in order."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console

from buzzer.errors import BuzzerError
from buzzer.suite.report.display import Display
from buzzer.suite.run.plan import Run
from buzzer.suite.run.progress import Part

PATIENCE_S = 1.0  # a second Ctrl-C within this time is ignored; a run is stopped and recorded by then
# Signals that end a suite in order; not every system has all of them.
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """A signal that ends the program. `number`: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class ProgressDisplay(Display):
    """A display that handles signals while it is open.

    Ctrl-C is deferred to the next poll of a run, where the run can be stopped in order and recorded: an interrupt at any
    other place could lose a record. A second Ctrl-C, at least a second later, interrupts at once. SIGTERM and SIGHUP, which
    schedulers and closed terminals send, do the same. Signals are handled only in the main thread, because Python allows no other.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._pressed, self._pressed_at = 0, 0.0  # number of the deferred signal, and when it came
        self.ended_by = 0  # number of the signal that stopped a run; 0 = none
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        super().__enter__()
        if threading.current_thread() is threading.main_thread():
            # nohup starts a program with SIGHUP ignored. It must stay ignored.
            handled = [n for n in ENDING if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._press) for number in handled}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, tb)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if isinstance(error, BuzzerError):
            self._raise_pending()  # the signal also went to the worker processes; that one of them ended is not an error

    def preparing(self, share: float, what: str) -> None:
        """Show the progress of generating or checking input data. Raises Interrupted after a signal."""
        self._raise_pending()
        super().preparing(share, what)

    def phase(self, run: Run, name: str, elapsed_s: float, part: Part | None = None) -> None:
        """Show the phase of the run. Raises Interrupted after a signal."""
        self._raise_pending()
        super().phase(run, name, elapsed_s, part)

    def _press(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._pressed and now - self._pressed_at >= PATIENCE_S:
            self.ended_by = number
            raise Interrupted(number)
        if not self._pressed:
            self._pressed, self._pressed_at = number, now

    def _raise_pending(self) -> None:
        """Raise Interrupted if a signal is deferred."""
        if number := self._pressed:
            self._pressed, self.ended_by = 0, number
            raise Interrupted(number)
