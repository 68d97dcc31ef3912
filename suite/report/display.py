"""Shows the progress of runs on a terminal and in a notebook: bars, the phase, and the time left in the budget."""

import io
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import median
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from buzzer.errors import UsageError
from buzzer.models.api.context import SCORE
from buzzer.suite.records.schema import Record
from buzzer.suite.report.format import clock_text
from buzzer.suite.run.executor import Level, Observer
from buzzer.suite.run.plan import Run
from buzzer.suite.run.progress import Part
from buzzer.suite.words import counted

UNSHOWN = (OSError, ValueError)  # errors of printing; UnicodeEncodeError and "closed file" are ValueErrors
MARKS = {"ok": ("✓", "green"), "unsupported": ("-", "yellow")}
FAILED = ("✗", "red")
LINE_S = 10.0  # without bars, a run prints a line about its progress at least this often
NARROW = 100  # columns of a terminal below which bars are short
HTML = '<pre style="line-height:normal">{code}</pre>'


class Display:
    """Shows bars on a terminal and in a notebook, and everywhere one line per finished run. Does not handle signals.

    In a file or a pipe, a run also prints a line every `LINE_S` seconds.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._line_at_s = time.monotonic() + LINE_S  # when the next line about the progress is due
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            BarColumn(bar_width=10 if self.console.width < NARROW else 30),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
            expand=self.console.width < NARROW,
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._cell: Any = None  # handle of the notebook's output that holds the bars
        self._suite: TaskID | None = None
        self._run: TaskID | None = None
        self._hint = ""  # of the last finished run; the next ones do not repeat it

    def __enter__(self) -> Self:
        self._bars.start()
        if self.console.is_jupyter:
            self._cell = notebook_output()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        with suppress(*UNSHOWN):
            self._bars.stop()
        if self._cell is not None:
            self._cell.update(html_of(""))

    def planned(self, runs: int) -> None:
        """Show a bar for the given number of timed runs."""
        self.clear()
        self._suite = self._bars.add_task("suite", total=runs, note=f"0 of {counted(runs, 'run')}")

    def preparing(self, share: float, what: str) -> None:
        """Show the progress of generating or checking input data."""
        self._show("data", share, 1.0, f"{what}  {share:.0%}")

    def phase(self, run: Run, name: str, elapsed_s: float, part: Part | None = None) -> None:
        """Show the phase of the run, how much of its budget's time is left, and how long it should take by earlier runs.

        A fit without earlier runs shows how much of the phase is done.
        """
        limit, expected = run.budget.time_s, run.expected_s
        if limit is not None and name != SCORE:
            left = clock_text(max(limit - elapsed_s, 0))
            usual = "" if expected is None else f", done in about {clock_text(max(expected - elapsed_s, 0))}"
            self._show(run.label, elapsed_s, limit, f"{name}  buzzer in {left}{usual}")
        elif expected is not None:
            note = f"{name}  {clock_text(elapsed_s)} of about {clock_text(expected)}"
            self._show(run.label, elapsed_s, expected, note)
        elif part is not None:
            left = "" if part.left_s is None else f", phase done in about {clock_text(part.left_s)}"
            self._show(run.label, part.share, 1.0, f"{name} {part.share:.0%}{left}  {clock_text(elapsed_s)}")
        else:
            self._show(run.label, elapsed_s, None, f"{name}  {clock_text(elapsed_s)}")

    def finished(self, run: Run, record: Record) -> None:
        """Show one line for a finished run, and its hint if it has one."""
        self.clear()
        self._line_at_s = time.monotonic() + LINE_S
        sign, colour = MARKS.get(record.outcome, FAILED)
        self._print(Text.assemble((sign, colour), f" {run.title}: {outcome_text(record)}"))
        if record.hint and record.hint != self._hint:
            self._print(Text(f"  hint: {record.hint}"))
        self._hint = record.hint
        if self._suite is not None and run.job != "fit":
            bar = self._bars.tasks[self._bars.task_ids.index(self._suite)]
            note = f"{int(bar.completed) + 1} of {counted(int(bar.total or 0), 'run')}"
            self._bars.update(self._suite, advance=1, note=note)
            self._redraw()

    def message(self, text: str, level: Level = "info") -> None:
        """Show one line of text, without interpreting markup."""
        self._print(Text.assemble(("warning:", "yellow"), f" {text}") if level == "warning" else Text(text))

    def clear(self) -> None:
        """Remove the current run's bar."""
        if self._run is not None:
            self._bars.remove_task(self._run)
            self._run = None

    def _print(self, line: Text) -> None:
        """Print a line. A closed terminal, a full disk or a character that cannot be encoded is ignored: the suite continues."""
        with suppress(*UNSHOWN):
            self.console.print(line, soft_wrap=True)

    def _show(self, label: str, done: float | None, total: float | None, note: str) -> None:
        if self._run is None:
            self._run = self._bars.add_task(label, total=total, note=note)
        self._bars.update(self._run, description=label, completed=done or 0, total=total, note=note)
        self._redraw()
        if self._bars.disable and (now := time.monotonic()) >= self._line_at_s:
            self._line_at_s = now + LINE_S
            self._print(Text(f"  {label}: {note}"))

    def _redraw(self) -> None:
        """Update the notebook's output. On a terminal, rich does this itself."""
        if self._cell is not None:
            canvas = Console(
                record=True, width=100, file=io.StringIO(), force_terminal=True, force_jupyter=False
            )
            canvas.print(self._bars.get_renderable())
            self._cell.update(html_of(canvas.export_html(inline_styles=True, code_format=HTML)))


class Quiet:
    """The observer of scripts without a terminal. Warnings go to the logger `buzzer`; progress is not shown."""

    _log = logging.getLogger("buzzer")

    def planned(self, runs: int) -> None:
        """Do nothing."""

    def preparing(self, share: float, what: str) -> None:
        """Do nothing."""

    def phase(self, run: Run, name: str, elapsed_s: float, part: Part | None = None) -> None:
        """Do nothing."""

    def finished(self, run: Run, record: Record) -> None:
        """Log the outcome at level INFO."""
        self._log.info("%s: %s", run.title, outcome_text(record))

    def message(self, text: str, level: Level = "info") -> None:
        """Log a message of level "info" at level INFO, and any other at level WARNING."""
        self._log.log(logging.INFO if level == "info" else logging.WARNING, "%s", text)


@contextmanager
def observing(observer: Observer | None) -> Iterator[Observer]:
    """The observer. If there is none: a `Display` in a notebook and on a terminal, and `Quiet` elsewhere. Raises UsageError for what is none."""
    if observer is not None and not isinstance(observer, Observer):
        raise UsageError(f"{observer!r} is not an observer", "make one: help(buzzer.Observer)")
    console = Console(stderr=True)
    if observer is not None:
        yield observer
    elif console.is_terminal or console.is_jupyter:
        with Display(console) as display:
            yield display
    else:
        yield Quiet()


def notebook_output() -> Any:
    """A new output of the notebook's cell. Its method `update` replaces its content."""
    from IPython.display import display

    return display(html_of(""), display_id=True)


def html_of(text: str) -> Any:
    """An HTML text as an object that a notebook renders."""
    from IPython.display import HTML as Html  # pyright: ignore[reportPrivateImportUsage]

    return Html(text)


def outcome_text(record: Record) -> str:
    """The outcome in one line: `ok  accuracy 0.9300  12.3 s  4:47 before the buzzer`, or what went wrong."""
    if record.outcome != "ok":
        return f"{record.outcome}: {record.message}"
    score = record.score
    parts = ["ok"] if score is None else ["ok", f"{record.metric} {score:.4f}"]
    if runs := record.samples.get("warm_run"):
        parts.append(f"p50 {1000 * median(runs):.2f} ms of {len(runs)} runs")
    parts.append(f"{record.wall_s:.1f} s")
    if record.budget.time_s is not None:
        parts.append(f"{clock_text(record.budget.time_s - record.wall_s)} before the buzzer")
    if record.disturbed is not None:
        parts.append(f"disturbed: others took {record.disturbed:.0%} of its cores")
    return "  ".join(parts)
