"""One record explained: how the run ended, its limits, phases and scores, its files, and how to do it again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

from buzzer.models.api.context import SCORE
from buzzer.suite.records import machine
from buzzer.suite.records.repetitions import unused
from buzzer.suite.records.schema import Record
from buzzer.suite.report import published, rerun
from buzzer.suite.report.format import clock_text, decimal, grouped, percent, seconds_text
from buzzer.suite.report.leaderboard import megabytes
from buzzer.suite.report.notes import SCORING, changes_of, variant_of
from buzzer.suite.report.table import Table, table
from buzzer.suite.words import counted

GATES = {  # status of the gate -> meaning
    "passed": "its scores agree with those of the reference run",
    "failed": "its scores differ from those of the reference run, or a score is not valid",
    "reference": "it is the reference, with which other runs are compared",
    "no-reference": "not ranked: no run of the reference on the same data was among the records",
    "unscored": "its scores were not compared",
}


def title(r: Record) -> str:
    """Task, job, variant and outcome in one line."""
    seconds = f" after {seconds_text(r.wall_s)}" if r.enforcement != "none" else ""
    return f"{r.task} {r.job}, {variant_of(r)}: {r.outcome}{seconds}"


def tables(r: Record) -> list[Table]:
    """The tables of a record, in reading order. Tables without rows are left out."""
    every = (facts(r), limits(r), phases(r), scores(r), samples(r))
    return [each for each in every if each.rows]


def facts(r: Record) -> Table:
    """What ran, on what, and where."""
    sample = "" if r.train_scale is None else f", training rows of scale {r.train_scale:g}"
    rows = sum(r.data_rows.values())
    lines = [
        ("run", f"{r.run_id[:8]}, round {r.repeat + 1}{', second of an A/A pair' if r.control else ''}"),
        ("ended", f"{r.created:%Y-%m-%d %H:%M:%S} UTC"),
        ("data", f"{r.data_source}, scale {r.scale:g}{sample}, seed {r.seed}, {counted_rows(rows)}"),
        ("device", ", ".join(filter(None, [r.device, r.cluster]))),
        ("machine", machine.describe(r.machine)),
        ("limits by", r.enforcement),
        ("parameters", changes_of(r)),
        ("work for one row", published.work_note(r).partition(": ")[2]),
        ("fit", r.fit_id or ""),
        ("commit", r.git_commit or ""),
        ("timing", SCORING[r.scoring]),
    ]
    return table("", ("", "value"), [line for line in lines if line[1]])


def counted_rows(rows: int) -> str:
    """A number of input rows in words."""
    return f"{rows:,} input rows" if rows else "no count of rows"


def limits(r: Record) -> Table:
    """What the run used of each limit of its budget."""
    b = r.budget
    lines = [
        ("time", seconds_text(r.wall_s), *limit_cells(b.time_s, r.wall_s, clock_text)),
        (
            "memory, MB",
            megabytes(r.peak_memory_bytes),
            *limit_cells(b.memory_bytes, r.peak_memory_bytes, megabytes),
        ),
        (
            "GPU memory, MB",
            megabytes(r.gpu_peak_memory_bytes),
            *limit_cells(b.gpu_memory_bytes, r.gpu_peak_memory_bytes, megabytes),
        ),
        ("CPU seconds", decimal(r.cpu_s), "" if b.cores is None else counted(b.cores, "core"), ""),
    ]
    return table(f"Budget {b.name}", ("of", "used", "limit", "left"), [line for line in lines if line[1]])


def limit_cells(limit: float | None, used: float | None, text: Callable[[float], str]) -> tuple[str, str]:
    """A limit as text, and the share of it that is left."""
    return ("none", "") if limit is None else (text(limit), percent(unused(limit, used)))


def phases(r: Record) -> Table:
    """The phases in order, with their shares of the wall time."""
    whole = sum(p.wall_s for p in r.compared)
    lines = [
        (
            p.name,
            grouped(p.wall_s, 3),
            "" if not whole or p not in r.compared else percent(p.wall_s / whole),
            grouped(p.cpu_s),
            megabytes(p.peak_memory_bytes or None),
        )
        for p in r.phases
    ]
    outside = f"{SCORE} is not part of the wall time"
    notes = [outside] if r.scoring == "outside" and any(p.name == SCORE for p in r.phases) else []
    if r.imports:
        imports = (f"{package} {grouped(seconds, 3)} s" for package, seconds in r.imports.items())
        notes.append(f"of which imports: {', '.join(imports)}")
    return table("Phases", ("phase", "wall s", "share", "CPU s", "peak MB"), lines, notes)


def scores(r: Record) -> Table:
    """The scores, and how far they are from those of the reference run."""
    lines = [
        (
            f"{name}{' (ranks)' if name == r.metric else ''}",
            f"{value:.6g}",
            f"{r.gate.differences[name]:+.2g}" if name in r.gate.differences else "",
        )
        for name, value in r.shown_scores.items()
    ]
    return table("Scores", ("score", "value", "difference from the reference"), lines)


def samples(r: Record) -> Table:
    """The repeated measurements in the record, with their range."""
    lines = [
        (name, str(len(values)), *(f"{1000 * v:,.3f}" for v in (min(values), median(values), max(values))))
        for name, values in r.samples.items()
        if len(values) > 1
    ]
    return table("Samples, in ms", ("sample", "count", "least", "median", "most"), lines)


def closing(r: Record, path: Path, files: Iterable[Path], problems: Sequence[str]) -> Iterator[str]:
    """Lines below the tables: message, gate, notes, files, what the checks found, and the command that does it again."""
    if r.message:
        yield f"what happened: {r.message}"
    if r.hint:
        yield f"hint: {r.hint}"
    reference = f" ({r.gate.reference_run[:8]})" if r.gate.reference_run else ""
    yield f"gate: {r.gate.status}, {GATES[r.gate.status]}{reference}"
    yield from (f"note: {note}" for note in r.notes)
    yield from (f"file: {file}" for file in files)
    yield f"record: {path}"
    yield f"check: {'; '.join(problems) or 'valid on its own; `buzzer check` also compares it with its reference'}"
    yield f"again: {rerun.command(r)}"
