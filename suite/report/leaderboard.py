"""The leaderboard from records and published figures, as tables and as one Markdown file."""

from collections.abc import Iterable, Sequence
from statistics import median

from buzzer.models.api.context import SCORE
from buzzer.suite.analysis import percentiles, published_job
from buzzer.suite.bench import groups as bench_groups
from buzzer.suite.records import machine
from buzzer.suite.records.repetitions import RunGroup, boards, phase_names, rows
from buzzer.suite.records.schema import Record
from buzzer.suite.report import bench_table, headline, notes, published
from buzzer.suite.report.format import decimal, three_digits
from buzzer.suite.report.table import Column, Table, table

COLUMNS = (
    Column("#", "rank"),
    Column("engine", wrap=False),
    Column("backend", "name", wrap=False),
    Column("precision"),
    Column("budget"),
    Column("score", "number", wrap=False),
    Column("wall s", "number"),
    Column("CPU s", "number"),
    Column("peak MB", "number"),
    Column("of time budget", "number"),
    Column("outcome"),
)


def board(group: Sequence[Record]) -> Table:
    """Comparable runs, ranked by wall time."""
    r, lines = group[0], list[tuple[str, ...]]()
    job = published_job.job_of(r.task)
    for i, row in enumerate(rows(group), 1):
        cells = _cells(row, str(i) if row.ranked else "")
        lines.append(cells if job is None else (*cells, published.work_text(row.first)))
    columns = COLUMNS if job is None else (*COLUMNS, Column(published.WORK))
    facts = f"{machine.describe(r.machine)}. {board_facts(group)}; score = {r.metric}."
    return table(r.task, columns, lines, notes.board_notes(group), facts)


def _cells(row: RunGroup, rank: str) -> tuple[str, ...]:
    r = row.first
    repeats = f" (of {len(row.records)})" if len(row.records) > 1 and row.started else ""
    return (
        rank,
        r.engine_name,
        r.backend,
        r.precision,
        r.budget.name,
        decimal(row.score, 4),
        f"{wall_text(row)}{repeats}",
        decimal(row.cpu_s),
        megabytes(row.peak),
        time_used(row),
        row.outcome,
    )


def wall_text(row: RunGroup) -> str:
    """Median wall seconds; empty if no run was started."""
    return decimal(row.wall_s) if row.started else ""


def megabytes(size: float | None) -> str:
    """Bytes as MB (10**6 bytes)."""
    return "" if size is None else decimal(size / 1e6, 0)


def time_used(row: RunGroup) -> str:
    """The share of the time budget that the median run took; only for runs that ended ok."""
    return _used(row, row.head_room.time)


def memory_used(row: RunGroup) -> str:
    """The share of the memory budget that the highest peak took; only for runs that ended ok."""
    return _used(row, row.head_room.memory)


def _used(row: RunGroup, unused: float | None) -> str:
    return three_digits(1 - unused) if unused is not None and row.first.outcome == "ok" else ""


def board_facts(group: Sequence[Record]) -> str:
    """The data of a board in one line, with the rows that its runs predict, as `buzzer compare` counts them."""
    r = group[0]
    sample = "" if r.train_scale is None else f" (training rows: {r.train_scale:g})"
    predicted = max(x.rows for x in group)
    rows_text = f", {predicted:,} rows predicted" if predicted else ""
    return f"{r.data_source} data, scale {r.scale:g}{sample}, seed {r.seed}{rows_text}"


def phase_table(group: Sequence[Record]) -> Table:
    """Median wall seconds by phase and of imports, throughput, and latency of single items, of the runs that ended ok."""
    names, imports = phase_names(group), any(r.imports for r in group)
    lines = [_phase_cells(row, names, imports) for row in rows(group) if row.first.outcome == "ok"]
    header = (
        "engine",
        "backend",
        "precision",
        "budget",
        *(f"{name} s" for name in names),
        *(["of which imports s"] if imports else []),
        "rows/s in predict",
        "latency ms",
    )
    outside = f" ({SCORE} is not part of the wall time)" if group[0].scoring == "outside" else ""
    return table(f"Wall seconds by phase{outside}", header, lines)


def _phase_cells(row: RunGroup, names: Iterable[str], imports: bool) -> tuple[str, ...]:
    r, predict = row.first, row.phase_s("predict")
    rate = f"{r.rows / predict:,.0f}" if predict and r.rows else ""
    seconds = (decimal(row.phase_s(name), 3) for name in names)
    imported = [decimal(row.imports_s, 3)] if imports else []
    return (r.engine_name, r.backend, r.precision, r.budget.name, *seconds, *imported, rate, latency(row))


def latency(row: RunGroup) -> str:
    """Median latency and, with at least `percentiles.least_count` samples, the 99th percentile."""
    laps = [1000 * lap for lap in row.samples("latency")]
    if not laps:
        return ""
    p99 = percentiles.quantile(laps, 0.99)
    tail = "" if p99 is None else f", p99 {p99.value:.2f}"
    return f"p50 {median(laps):.2f}{tail} (of {len(laps)})"


RULES = """A run is ranked if it ended within its budget and its scores lie within the task's tolerance of the
reference engine's scores on the same data. Runs are ranked by median wall time. Wall time runs from the start of the
process until the submission is written: interpreter, imports, reading the raw file, features, inference, writing.
Scoring follows, as in the competitions, where the organisers scored; its time is recorded and not compared. In records
before schema minor 1, scoring was part of the wall time. Each board names the rule by which its runs were timed, and no
board mixes the two. "Of time budget" is the share of
the time budget that a run took. Runs that failed are listed with their
outcome, never left out. Peak memory under cgroups includes the page cache that the run filled."""


def markdown(records: Iterable[Record]) -> str:
    """The whole leaderboard."""
    records = list(records)
    parts = ["# Leaderboard", RULES]
    for group in boards(records).values():
        phases = phase_table(group)
        parts += [board(group).markdown(), *([phases.markdown(level=0)] if phases.rows else [])]
    parts += [bench_table.board(group).markdown() for group in bench_groups.boards(records).values()]
    parts += [h.table().markdown() for h in headline.headlines(records)]
    figures = published_job.figures_beside({r.task for r in records})
    parts += [published.leaderboard(figures).markdown()] if figures else []
    return "\n\n".join(parts) + "\n"
