"""A comparison as tables, for a terminal, for Markdown, and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from buzzer.suite.analysis.comparison import Comparison, ScalingFit, Variant, VariantResult
from buzzer.suite.analysis.regress import Change
from buzzer.suite.analysis.statistics import LEAST_ROUNDS, LEAST_SIZES, Projection, Ratio
from buzzer.suite.records import comparable, machine
from buzzer.suite.report import leaderboard

MOSTLY = 0.5  # share of the largest run that is fixed cost, above which a fit of the rest means little


@dataclass(frozen=True)
class Section:
    """One table: a title, its lines, and what a reader must know."""

    title: str
    header: Sequence[str]
    lines: Sequence[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)


def sections(made: Comparison, found: Sequence[Change]) -> list[Section]:
    """All tables of a comparison, in reading order."""
    largest = made.group.largest
    out = [
        _runs(made, scale, _run_notes(made) if scale == largest else [])
        for scale in sorted(made.lines, reverse=True)
    ]
    if any(line.cell.ranked for line in made.lines[largest]):
        out.insert(1, _stages(made.lines[largest], largest))
    if made.trends:
        out += [_growth(made), _full_job(made)]
    if found:
        out.append(_changes(found))
    return out


def differ(made: Comparison) -> list[str]:
    """What the records of a comparison differ in."""
    return comparable.differences(
        r for row in made.group.cells.values() for cell in row.values() for r in cell.records
    )


def title(made: Comparison) -> str:
    r = made.group.first
    rule = leaderboard.SCORING[r.scoring]
    return f"{r.task}: {r.data_source} data, seed {r.seed}, {machine.describe(r.machine)}; {rule}"


def _runs(made: Comparison, scale: float, notes: list[str]) -> Section:
    header = (
        "variant", "rounds", "outcome", "score", "wall s", "against plain", "against tuned",
        "time left", "memory left", "energy J", "cost $", "GPU at work",
    )  # fmt: skip
    names = {v: name for name, v in made.baselines.items() if v is not None}
    lines = [_run_line(line, names) for line in made.lines[scale]]
    rows = max(line.cell.first.rows for line in made.lines[scale])  # 0 of runs that did not end
    size = f" ({rows:,} rows)" if rows else ""
    if not any(line.cell.ranked for line in made.lines[scale]):
        notes = ["no variant ended well within its budget: there is nothing to compare", *notes]
    return Section(f"Runs at scale {scale:g}{size}", header, lines, notes)


def _run_line(line: VariantResult, baselines: dict[Variant, str]) -> tuple[str, ...]:
    r, room = line.cell.first, line.head_room()
    score, good = r.scores.get(r.metric), line.cell.ranked
    mark = f" [{baselines[line.variant]}]" if line.variant in baselines else ""
    return (
        f"{line.variant}{mark}",
        str(len(line.cell.records)),
        line.cell.outcome,
        "" if score is None else f"{score:.4f}",
        line.cell.wall_text,
        *(_ratio(line.speed_up[name], line.is_noise[name]) for name in ("plain", "tuned")),
        _share(room["time"] if good else None),
        _share(room["memory"] if good else None),
        "" if line.cell.energy_j is None else f"{line.cell.energy_j:.0f}",
        "" if line.cost_usd is None else f"{line.cost_usd:.4g}",
        _gpu(line),
    )


def _ratio(ratio: Ratio | None, noise: bool | None) -> str:
    if ratio is None:
        return ""
    interval = f"needs {LEAST_ROUNDS} rounds" if ratio.low is None else f"{ratio.low:.2f}–{ratio.high:.2f}"
    return f"{ratio.value:.2f}× ({interval}){' noise' if noise else ''}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _gpu(line: VariantResult) -> str:
    r = line.cell.first
    if r.gpu_busy_s is None:
        return ""
    peak = r.gpu_peak_memory_bytes
    return f"{r.gpu_busy_s:.1f} s" + ("" if peak is None else f", {peak / 1e6:.0f} MB")


def _run_notes(made: Comparison) -> list[str]:
    notes = []
    for name, meaning in (
        ("plain", "reference engine and backend on one core"),
        ("tuned", "fastest CPU variant with the most cores, by these runs"),
    ):
        variant = made.baselines[name]
        notes.append(f"{name} baseline, the {meaning}: {variant or 'not among these records'}")
    if made.noise is None:
        notes.append(
            "no two A/A pairs of this machine are on record: only intervals tell noise from difference"
        )
    else:
        notes.append(
            f"noise of this machine: means of A/A runs differ by up to {made.noise.per_cent:.1f} % "
            f"({made.noise.pairs} pairs)"
        )
    every = [r for lines in made.lines.values() for x in lines for r in x.cell.records]
    return [*notes, *differ(made), *leaderboard.disturbances(every)]


def _stages(lines: Sequence[VariantResult], scale: float) -> Section:
    good = [line for line in lines if line.cell.ranked]
    names = leaderboard.phase_names(line.cell.first for line in good)
    spent = {line.variant: [line.cell.phase_s(name) for name in names] for line in good}
    rows = [(str(v), *("" if s is None else f"{s:.3f}" for s in walls)) for v, walls in spent.items()]
    return Section(f"Stages at scale {scale:g}, wall seconds (medians)", ("variant", *names), rows)


def _growth(made: Comparison) -> Section:
    scales = sorted(made.group.cells)
    header = (
        "variant",
        *(f"{s:g}" for s in scales),
        "fixed s",
        "exponent",
        "even with plain",
        "even with tuned",
    )
    lines = [_growth_line(made, trend, scales) for trend in made.trends]
    notes = [
        "wall seconds by scale, fitted as fixed + rate x size^exponent; even with = rows from which it is faster",
        "the interval of an exponent holds it in 95 % of cases if this is the law",
    ]
    if all(t.growth.fixed > MOSTLY * t.growth.at(made.group.largest) for t in made.trends):
        notes.append(
            "at these scales most of the time does not grow: larger ones would tell the growth better"
        )
    return Section("Growth with size", header, lines, notes)


def _growth_line(made: Comparison, trend: ScalingFit, scales: Sequence[float]) -> tuple[str, ...]:
    row = [made.group.cells[s].get(trend.variant) for s in scales]
    good = [c for c in row if c is not None and c.ranked]
    exponent = "1, taken" if len(good) < LEAST_SIZES else f"{trend.growth.exponent:.2f}"
    if trend.exponent is not None:
        low, high = trend.exponent
        exponent += f" ({low:.2f}–{high:.2f})"
    return (
        str(trend.variant),
        *("" if c is None else f"{c.wall_s:.2f}" if c.ranked else c.outcome for c in row),
        f"{trend.growth.fixed:.2f}",
        exponent,
        *(_even(made, trend, name) for name in ("plain", "tuned")),
    )


def _even(made: Comparison, trend: ScalingFit, name: str) -> str:
    if name not in trend.break_even_rows or not made.group.rows_at_full:
        return ""
    rows = trend.break_even_rows[name]
    if rows is None:
        other = next(t for t in made.trends if t.variant == made.baselines[name])
        size = made.group.largest
        return "always faster" if trend.growth.at(size) < other.growth.at(size) else "never"
    inside = min(made.group.cells) <= rows / made.group.rows_at_full <= made.group.largest
    return f"{rows:,.0f} rows" + ("" if inside else " (not measured there)")


def _full_job(made: Comparison) -> Section:
    size = made.trends[0].full.size
    header = (
        "variant", "wall s", "at least 95 %", "peak GB", "at least 95 %", "budget", "beats the buzzer", "checked",
    )  # fmt: skip
    lines = [
        (
            str(t.variant),
            f"{t.full.value:.1f}",
            _bounds(t.full),
            *_memory(t.full_memory),
            t.budget.name,
            t.verdict,
            "three sizes needed"
            if t.check is None
            else f"{t.check.size:g}: {t.check.predicted:.2f} for {t.check.measured:.2f} s, {100 * t.check.error:+.1f} %",
        )
        for t in made.trends
    ]
    notes = [
        "the bounds hold all laws that the measured sizes do not reject, and a growth beyond the largest that halves or doubles",
        "checked = the largest measured size, predicted from the smaller ones alone",
    ]
    return Section(f"The job at scale {size:g}, projected", header, lines, notes)


def _memory(p: Projection | None) -> tuple[str, str]:
    return ("", "") if p is None else (f"{p.value / 1e9:.2f}", _bounds(p, 1e9, 2))


def _bounds(p: Projection, unit: float = 1.0, digits: int = 1) -> str:
    if p.low is None or p.high is None:
        return f"needs {p.needs}"
    return f"{p.low / unit:.{digits}f}–{p.high / unit:.{digits}f}"


def _changes(found: Sequence[Change]) -> Section:
    header = ("variant", "scale", "figure", "before", "after", "change", "95 %", "days", "verdict")
    lines = [
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
        for c in found
    ]
    notes = [
        "days = days of both; over more than one, the interval holds the days' own effects, and is the narrower the more days there are",
        "a change within its interval or the noise fails nothing, nor does one without a verdict",
        *sorted({note for c in found for note in c.differ}),
    ]
    return Section("Against the older records", header, lines, notes)


def _change_bounds(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return ""
    return f"{100 * (ratio.low - 1):+.1f}–{100 * (ratio.high - 1):+.1f} %"


def as_dict(made: Comparison, found: Sequence[Change]) -> dict[str, Any]:
    """The comparison as JSON-able fields; the records themselves are named by their run_id."""
    r = made.group.first
    return {
        "task": r.task,
        "machine": r.machine.model_dump(),
        "seed": r.seed,
        "config_hash": r.config_hash,
        "data_source": r.data_source,
        "scoring": r.scoring,
        "differ": differ(made),
        "baselines": {name: v and asdict(v) for name, v in made.baselines.items()},
        "noise": made.noise and asdict(made.noise),
        "runs": [_line_dict(scale, line) for scale, lines in made.lines.items() for line in lines],
        "trends": [asdict(trend) for trend in made.trends],
        "changes": [asdict(change) for change in found],
    }


def _line_dict(scale: float, line: VariantResult) -> dict[str, Any]:
    cell = line.cell
    names = dict.fromkeys(p.name for p in cell.first.phases)
    return {
        "variant": asdict(line.variant),
        "scale": scale,
        "rows": cell.first.rows,
        "outcome": cell.outcome,
        "scores": cell.first.scores,
        "wall_s": cell.wall_s if cell.started else None,
        "walls": list(cell.walls.values()),
        "phases": {name: cell.phase_s(name) for name in names},
        "speed_up": {name: ratio and asdict(ratio) for name, ratio in line.speed_up.items()},
        "is_noise": line.is_noise,
        "head_room": line.head_room(),
        "peak_memory_bytes": cell.peak,
        "energy_j": cell.energy_j,
        "cost_usd": line.cost_usd,
        "gpu_busy_s": cell.first.gpu_busy_s,
        "gpu_peak_memory_bytes": cell.first.gpu_peak_memory_bytes,
        "run_ids": [r.run_id for r in cell.records],
    }
