"""A comparison as tables for a terminal and for Markdown."""

from collections.abc import Sequence

from buzzer.suite.analysis import published_job
from buzzer.suite.analysis.comparison import (
    Comparison,
    Group,
    JobTime,
    ScalingFit,
    Truth,
    Variant,
    VariantResult,
)
from buzzer.suite.analysis.regress import Change, Failure
from buzzer.suite.analysis.statistics import (
    LEAST_ROUNDS,
    LEAST_SIZES,
    SURE_ROUNDS,
    Projection,
    Ratio,
    sureness,
)
from buzzer.suite.escape import markdown as escaped
from buzzer.suite.records import comparable, machine
from buzzer.suite.records.repetitions import phase_names
from buzzer.suite.report import leaderboard, published
from buzzer.suite.report.format import decimal, percent
from buzzer.suite.report.notes import SCORING, disturbances, resumptions
from buzzer.suite.report.table import Table, table

MOSTLY = 0.5  # if fixed cost is more than this share of the largest run, a fit of the rest means little
BASELINES = {
    "plain": "reference engine and backend on one core",
    "tuned": "fastest CPU variant with the most cores, by these runs",
}


def title(result: Comparison) -> str:
    """Task, data, machine and rule of timing in one line."""
    return title_of(result.group)


def title_of(group: Group) -> str:
    """Task, data, machine and rule of timing of a group in one line."""
    r = group.first
    rule = SCORING[r.scoring]
    return f"{r.task}: {r.data_source} data, seed {r.seed}, {machine.describe(r.machine)}; {rule}"


def tables(
    result: Comparison, changes: Sequence[Change] = (), failures: Sequence[Failure] = ()
) -> list[Table]:
    """All tables of a comparison, in reading order: verdicts first, then the runs, the largest scale first."""
    largest = result.group.largest
    out = [_changes(changes, failures)] if changes or failures else []
    out += [_full_job(result)] if result.fits else []
    for scale in sorted(result.results, reverse=True):
        out.append(_runs(result, scale, _run_notes(result) if scale == largest else []))
        if scale == largest and any(line.cell.ranked for line in result.results[scale]):
            out.append(_phases(result.results[scale], scale))
    out += [_growth(result)] if result.fits else []
    out += [truth_table(result.truths)] if result.truths else []
    return [*out, *published_tables(result)]


def markdown(result: Comparison, changes: Sequence[Change] = (), failures: Sequence[Failure] = ()) -> str:
    """The comparison as a Markdown file."""
    parts = [f"# {escaped(title(result))}", *(t.markdown() for t in tables(result, changes, failures))]
    return "\n\n".join(parts) + "\n"


def differences(result: Comparison) -> list[str]:
    """Notes on how the records of a comparison differ, and on those that it leaves out."""
    notes = comparable.differences(
        r for row in result.group.cells.values() for cell in row.values() for r in cell.records
    )
    if hours := result.group.apart_s / 3600:
        notes.append(f"runs of one round were up to {hours:,.0f} hours apart: ratios include how days differ")
    if others := result.group.other_data:
        left_out = f"{others} {'run is' if others == 1 else 'runs are'} left out"
        notes.append(f"{left_out}, on other data than the newest of the same scale")
    return notes


def _runs(result: Comparison, scale: float, notes: list[str]) -> Table:
    header = (
        "variant", "rounds", "outcome", "score", "wall s", "against plain", "against tuned",
        "time left", "memory left", "energy J", "cost $", "GPU at work",
    )  # fmt: skip
    names = {v: name for name, v in result.baselines.items() if v is not None}
    lines = [_run_line(line, names) for line in result.results[scale]]
    rows = max(line.cell.first.rows for line in result.results[scale])  # 0 for runs that did not end
    size = f" ({rows:,} rows)" if rows else ""
    if not any(line.cell.ranked for line in result.results[scale]):
        notes = ["no variant ended well within its budget: there is nothing to compare", *notes]
    return table(f"Runs at scale {scale:g}{size}", header, lines, notes)


def _run_line(line: VariantResult, baselines: dict[Variant, str]) -> tuple[str, ...]:
    cell, left = line.cell, line.cell.head_room
    mark = f" [{baselines[line.variant]}]" if line.variant in baselines else ""
    return (
        f"{line.variant}{mark}",
        str(len(cell.records)),
        cell.outcome,
        decimal(cell.score, 4),
        leaderboard.wall_text(cell),
        *(_ratio(line.speed_up[name], line.is_noise[name]) for name in BASELINES),
        percent(left.time if cell.ranked else None),
        percent(left.memory if cell.ranked else None),
        decimal(cell.energy_j, 0),
        "" if line.cost_usd is None else f"{line.cost_usd:.4g}",
        _gpu(line),
    )


def _ratio(ratio: Ratio | None, noise: bool | None) -> str:
    if ratio is None:
        return ""
    interval = f"needs {LEAST_ROUNDS} rounds" if ratio.low is None else f"{ratio.low:.2f}–{ratio.high:.2f}"
    return f"{ratio.value:.2f}× ({interval}){' noise' if noise else ''}"


def _gpu(line: VariantResult) -> str:
    r = line.cell.first
    if r.gpu_busy_s is None:
        return ""
    peak = r.gpu_peak_memory_bytes
    return f"{r.gpu_busy_s:.1f} s" + ("" if peak is None else f", {peak / 1e6:.0f} MB")


def _run_notes(result: Comparison) -> list[str]:
    lines = [
        f"{name} baseline, the {meaning}: {result.baselines[name] or 'not among these records'}"
        for name, meaning in BASELINES.items()
    ]
    if result.noise is None:
        lines.append(
            "this machine has no two A/A pairs on record: only intervals separate noise from difference"
        )
    else:
        lines.append(
            f"noise of this machine: means of A/A runs differ by up to {result.noise.per_cent:.1f} % "
            f"({result.noise.pairs} pairs)"
        )
    every = [r for lines in result.results.values() for x in lines for r in x.cell.records]
    return [*lines, *sureness_note(result), *differences(result), *disturbances(every), *resumptions(every)]


def sureness_note(result: Comparison) -> list[str]:
    """A note on intervals of few rounds: what they assume, and how sure so few rounds can be without it."""
    ratios = (r for lines in result.results.values() for x in lines for r in x.speed_up.values())
    rounds = [r.pairs for r in ratios if r is not None and r.low is not None and r.pairs < SURE_ROUNDS]
    if not rounds:
        return []
    fewest = min(rounds)
    assumption = (
        f"intervals of {fewest} rounds are 95 % intervals only if log ratios are normally distributed"
    )
    return [f"{assumption}; without that, {fewest} rounds can be {percent(sureness(fewest))} sure at most"]


def _phases(lines: Sequence[VariantResult], scale: float) -> Table:
    good = [line for line in lines if line.cell.ranked]
    names = phase_names(line.cell.first for line in good)
    rows = [(str(line.variant), *(decimal(line.cell.phase_s(name), 3) for name in names)) for line in good]
    return table(f"Phases at scale {scale:g}, wall seconds (medians)", ("variant", *names), rows)


def _growth(result: Comparison) -> Table:
    scales = sorted(result.group.cells)
    header = (
        "variant",
        *(f"{s:g}" for s in scales),
        "fixed s",
        "exponent",
        "even with plain",
        "even with tuned",
    )
    lines = [_growth_line(result, trend, scales) for trend in result.fits]
    notes = [
        "wall seconds by scale, fitted as fixed + rate x size^exponent; even with = rows from which on it is faster",
        "the interval of an exponent covers it in 95 % of cases if the cost follows this law",
    ]
    if all(t.growth.fixed > MOSTLY * t.growth.at(result.group.largest) for t in result.fits):
        notes.append(
            "most of the time does not grow at these scales: larger ones would show the growth better"
        )
    return table("Growth with size", header, lines, notes)


def _growth_line(result: Comparison, trend: ScalingFit, scales: Sequence[float]) -> tuple[str, ...]:
    row = [result.group.cells[s].get(trend.variant) for s in scales]
    good = [c for c in row if c is not None and c.ranked]
    exponent = "1, assumed" if len(good) < LEAST_SIZES else f"{trend.growth.exponent:.2f}"
    if trend.exponent is not None:
        low, high = trend.exponent
        exponent += f" ({low:.2f}–{high:.2f})"
    return (
        str(trend.variant),
        *("" if c is None else f"{c.wall_s:.2f}" if c.ranked else c.outcome for c in row),
        f"{trend.growth.fixed:.2f}",
        exponent,
        *(_even(result, trend, name) for name in BASELINES),
    )


def _even(result: Comparison, trend: ScalingFit, name: str) -> str:
    if name not in trend.break_even_rows or not result.group.rows_at_full:
        return ""
    rows = trend.break_even_rows[name]
    if rows is None:
        other = next(t for t in result.fits if t.variant == result.baselines[name])
        size = result.group.largest
        return "at every size here" if trend.growth.at(size) < other.growth.at(size) else "at no size here"
    inside = min(result.group.cells) <= rows / result.group.rows_at_full <= result.group.largest
    return f"{rows:,.0f} rows" + ("" if inside else " (not measured there)")


def _full_job(result: Comparison) -> Table:
    size = result.fits[0].full.size
    header = (
        "variant", "fits the budget", "budget", "wall s", "at least 95 %", "peak GB", "at least 95 %", "checked",
    )  # fmt: skip
    lines = [
        (
            str(t.variant),
            t.verdict,
            t.budget.name,
            f"{t.full.value:.1f}",
            _bounds(t.full),
            *_memory(t.full_memory),
            "three sizes needed"
            if t.check is None
            else f"{t.check.size:g}: {t.check.predicted:.2f} for {t.check.measured:.2f} s, {100 * t.check.error:+.1f} %",
        )
        for t in result.fits
    ]
    notes = [
        "the bounds cover every law that the measured sizes do not reject, and a growth beyond the largest size that halves or doubles",
        "checked = the largest measured size, predicted from the smaller ones only",
    ]
    return table(f"The job at scale {size:g}, projected", header, lines, notes)


def truth_table(truths: Sequence[Truth], of: str = "") -> Table:
    """The full job as it was projected from smaller sizes, and as it was measured. of: words before the title, such as the task."""
    size = truths[0].predicted.size
    words = {True: "yes", False: "no", None: ""}
    lines = [
        (
            str(t.variant),
            f"{t.predicted.value:.1f}",
            _bounds(t.predicted),
            f"{t.measured_s:.1f}",
            f"{100 * (t.predicted.value / t.measured_s - 1):+.1f} %",
            words[t.holds],
        )
        for t in truths
    ]
    header = ("variant", "prediction s", "at least 95 %", "truth s", "error", "the interval holds the truth")
    notes = [
        "the prediction uses the runs of smaller sizes only; the truth is the median of the runs at this size"
    ]
    return table(f"{of}Prediction, interval, truth at scale {size:g}", header, lines, notes)


def published_tables(result: Comparison) -> list[Table]:
    """The published times of the task's job: beside the runs that are the same job, and apart from all others."""
    job = published_job.job_of(result.group.first.task)
    if job is None or not result.job_times:
        return []
    beside = [t for t in result.job_times if t.share.is_same_job]
    apart = dict.fromkeys(f"{_kind(t)}: {t.share}" for t in result.job_times if not t.share.is_same_job)
    figures = [(f.who, f"{f.time_s:.0f}", f.conditions) for f in job.timed]
    notes = [f"not beside these runs, which are another job: {share}" for share in apart]
    tables = [
        table("Published times", ("who", "wall s", "conditions"), figures, [published.SAME_JOB, *notes])
    ]
    if beside:
        header = (
            "variant",
            "wall s",
            "share of the published job",
            *(f"times faster than {f.who}" for f in job.timed),
        )
        lines = [
            (
                f"{t.variant}, {_kind(t)}",
                f"{t.wall_s:.1f}",
                str(t.share),
                *(f"{(f.time_s or 0.0) / t.wall_s:.2f}×" for f in job.timed),
            )
            for t in beside
        ]
        tables.append(table("Beside the published times", header, lines, [published.TIMES]))
    return tables


def _kind(t: JobTime) -> str:
    return f"{'projected' if t.is_projected else 'measured'}, {t.rows:,.0f} rows"


def _memory(p: Projection | None) -> tuple[str, str]:
    return ("", "") if p is None else (f"{p.value / 1e9:.2f}", _bounds(p, 1e9, 2))


def _bounds(p: Projection, unit: float = 1.0, digits: int = 1) -> str:
    if p.low is None or p.high is None:
        return f"needs {p.needs}"
    return f"{p.low / unit:.{digits}f}–{p.high / unit:.{digits}f}"


def _changes(changes: Sequence[Change], failures: Sequence[Failure]) -> Table:
    header = ("variant", "scale", "figure", "before", "after", "change", "95 %", "days", "verdict")
    lines = [
        (str(f.variant), f"{f.scale:g}", "outcome", "ok", f.outcome, "", "", "", "FAILED") for f in failures
    ]
    lines += [
        (
            str(c.variant),
            f"{c.scale:g}",
            c.figure,
            f"{c.before:.4g}",
            f"{c.after:.4g}",
            f"{100 * (c.ratio.value - 1):+.1f} %",
            _change_bounds(c.ratio),
            str(c.days),
            f"needs {c.needs}" if c.needs else "REGRESSED" if c.failed else "noise" if c.noise else "",
        )
        for c in changes
    ]
    notes = [
        "days = number of days of both; with several, the interval includes how days differ, and narrows with their number",
        "a change within its interval or within the noise never fails, and neither does a change without a verdict",
        *sorted({note for c in changes for note in c.differ}),
    ]
    return table("Against the older records", header, lines, notes)


def _change_bounds(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return ""
    return f"{100 * (ratio.low - 1):+.1f}–{100 * (ratio.high - 1):+.1f} %"
