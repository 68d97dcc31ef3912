"""The leaderboard in Markdown, from records and published figures."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from buzzer.configs import load_yaml
from buzzer.models.api.context import SCORE
from buzzer.suite.analysis import percentiles
from buzzer.suite.escape import Markdown
from buzzer.suite.escape import markdown as shown
from buzzer.suite.records import comparable, machine
from buzzer.suite.records.record import Record
from buzzer.suite.report import bench_table

SCORING = {  # Record.scoring -> how a board says it
    "inside": "wall time includes scoring",
    "outside": "wall time ends before scoring",
}
COLUMNS = (
    "#",
    "engine",
    "backend",
    "precision",
    "budget",
    "score",
    "wall s",
    "CPU s",
    "peak MB",
    "time left",
    "outcome",
)


def rules_of(group: Sequence[Record]) -> list[str]:
    """By which rule runs that stand together were timed, and in what they differ."""
    return [SCORING[group[0].scoring], *comparable.told(group)]


@dataclass(frozen=True)
class RunGroup:
    """One line of the leaderboard: the repetitions of one run, summed up by their medians."""

    records: tuple[Record, ...]

    @property
    def first(self) -> Record:
        return self.records[0]

    @property
    def ranked(self) -> bool:
        """Only runs that ended well and whose scores were held against the reference are ranked."""
        good = (r.outcome == "ok" and r.gate.status in ("passed", "reference") for r in self.records)
        return all(good) and not self.first.published

    @property
    def started(self) -> bool:
        return any(r.enforcement != "none" for r in self.records)

    @property
    def walls(self) -> dict[int, float]:
        """Wall seconds by repetition."""
        return {r.repeat: r.wall_s for r in self.records}

    @property
    def wall_s(self) -> float:
        """Median wall seconds of the runs that were started; 0 where none was."""
        return median([r.wall_s for r in self.records if r.enforcement != "none"] or [0.0])

    @property
    def wall_text(self) -> str:
        """Wall seconds; empty where no run was started."""
        return f"{self.wall_s:.2f}" if self.started else ""

    @property
    def peak(self) -> int | None:
        """Highest peak of host memory in bytes, where one is known."""
        return max(
            (r.peak_memory_bytes for r in self.records if r.peak_memory_bytes is not None), default=None
        )

    @property
    def energy_j(self) -> float | None:
        """Median joules of all sources that were counted; None where none was."""
        sums = [sum(r.energy_j.values()) for r in self.records if r.energy_j]
        return median(sums) if sums else None

    def phase_s(self, name: str) -> float | None:
        """Median wall seconds of a phase, over the runs that came to it; None where none did."""
        spent = [s for r in self.records if (s := phase_s(r, name)) is not None]
        return median(spent) if spent else None

    @property
    def outcome(self) -> str:
        worst = next((r for r in self.records if r.outcome != "ok"), self.first)
        if worst.outcome == "ok" and worst.gate.status in ("no-reference", "unscored"):
            return f"ok, not ranked ({worst.gate.status})"
        return worst.outcome

    def head_room(self) -> str:
        """Share of the time budget that was left."""
        limit = self.first.budget.time_s
        return (
            "" if limit is None or self.first.outcome != "ok" else f"{100 * (1 - self.wall_s / limit):.1f} %"
        )

    def memory_room(self) -> str:
        """Share of the memory budget that was left at the peak."""
        limit, peak = self.first.budget.memory_bytes, self.peak
        if limit is None or peak is None or self.first.outcome != "ok":
            return ""
        return f"{100 * (1 - peak / limit):.1f} %"

    def cells(self, rank: str) -> tuple[str, ...]:
        r = self.first
        score = r.scores.get(r.metric)
        cpu = [x.cpu_s for x in self.records if x.cpu_s is not None]
        spread = f" (of {len(self.records)})" if len(self.records) > 1 and self.started else ""
        return (
            rank,
            r.engine_name,
            r.backend,
            r.precision,
            r.budget.name,
            "" if score is None else f"{score:.4f}",
            f"{self.wall_text}{spread}",
            f"{median(cpu):.2f}" if cpu else "",
            "" if self.peak is None else f"{self.peak / 1e6:.0f}",
            self.head_room(),
            self.outcome,
        )


def rows(records: Iterable[Record]) -> list[RunGroup]:
    """Ranked rows first, fastest first; then the others. The newest run of each repetition counts."""
    newest: dict[tuple[Any, ...], dict[int, Record]] = defaultdict(dict)
    for r in sorted(records, key=lambda r: r.created):
        key = (r.engine_name, r.backend, r.precision, r.device, r.budget.name)
        newest[key][r.repeat] = r
    made = [RunGroup(tuple(group[i] for i in sorted(group))) for group in newest.values()]
    return sorted(made, key=lambda row: (not row.ranked, row.wall_s))


def boards(records: Iterable[Record]) -> dict[comparable.Key, list[Record]]:
    """Timed runs by what makes them comparable (suite/records/comparable.py), by task and rising scale."""
    found: dict[comparable.Key, list[Record]] = defaultdict(list)
    for r in records:
        if r.job == "predict" and not r.control:
            found[comparable.times(r)].append(r)
    return dict(sorted(found.items(), key=lambda item: (item[1][0].task, item[1][0].scale)))


def table(group: Sequence[Record]) -> list[tuple[str, ...]]:
    """The cells of one board, a tuple a line."""
    return [row.cells(str(i) if row.ranked else "") for i, row in enumerate(rows(group), 1)]


def phase_header(group: Sequence[Record]) -> tuple[str, ...]:
    """The phases of the group's runs in the order of the job, and what they give per second and per item."""
    return (
        "engine",
        "backend",
        "budget",
        *(f"{name} s" for name in phase_names(group)),
        "rows/s in predict",
        "latency ms",
    )


def phase_table(group: Sequence[Record]) -> list[tuple[str, ...]]:
    """Medians over repetitions of the wall seconds by phase, the throughput, and the latency of single items."""
    names, lines = phase_names(group), []
    for row in rows(group):
        if row.first.outcome != "ok":
            continue
        spent = {name: row.phase_s(name) for name in names}
        predict = spent.get("predict")
        rate = f"{row.first.rows / predict:,.0f}" if predict and row.first.rows else ""
        times = ("" if s is None else f"{s:.3f}" for s in spent.values())
        lines.append(
            (row.first.engine_name, row.first.backend, row.first.budget.name, *times, rate, latency(row))
        )
    return lines


def phase_names(records: Iterable[Record]) -> list[str]:
    """The phases of all runs in the order of the job, `score` last."""
    names = dict.fromkeys(phase.name for r in records for phase in r.phases)
    return sorted(names, key=lambda name: name == SCORE)


def phase_s(record: Record, name: str) -> float | None:
    """Wall seconds of a phase; None in a run that did not come to it."""
    spent = [phase.wall_s for phase in record.phases if phase.name == name]
    return sum(spent) if spent else None


def latency(row: RunGroup) -> str:
    """Median of the laps of phase `latency`, and the 99th percentile where there are samples enough for it."""
    laps = [lap * 1000 for r in row.records for lap in r.samples.get("latency", [])]
    if not laps:
        return ""
    told = percentiles.quantile(laps, 0.99)
    tail = "" if told is None else f", p99 {told.value:.2f}"
    return f"p50 {median(laps):.2f}{tail} (of {len(laps)})"


def score_line(group: Sequence[Record]) -> str:
    """All scores of the best run, and the ceiling where the data have a known one."""
    r = rows(group)[0].first
    parts = [f"{name} {value:.4f}" for name, value in r.scores.items()]
    ceiling = r.details.get("ceiling")
    parts += [f"best possible on these generated data {ceiling:.4f}"] if ceiling is not None else []
    return f"scores: {'; '.join(parts)}" if parts else ""


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; cells that are not Markdown already are shown as they are."""
    out = ["| " + " | ".join(map(shown, header)) + " |", "|" + " --- |" * len(header)]
    out += ["| " + " | ".join(map(shown, line)) + " |" for line in lines]
    return "\n".join(out)


def markdown_notes(notes: Iterable[str]) -> list[str]:
    return [f"- {shown(note, block=True)}" for note in notes]


def board_facts(group: Sequence[Record]) -> str:
    """The data of a board in one line."""
    r = group[0]
    return f"{r.data_source} data, scale {r.scale:g}, seed {r.seed}, {sum(r.data_rows.values()):,} rows"


def board_notes(group: Sequence[Record]) -> list[str]:
    """What a reader of a board must know."""
    notes = [SCORING[group[0].scoring], score_line(group), *sorted({note for r in group for note in r.notes})]
    notes += sorted({f"budget {r.budget.name} not met here: {u}" for r in group for u in r.budget.unmet})
    return [note for note in [*notes, *comparable.told(group), *disturbances(group)] if note]


def disturbances(group: Sequence[Record]) -> list[str]:
    """How often others took so much of a variant's cores that its times are not to be trusted."""
    found: dict[str, list[float]] = {}
    for r in group:
        if r.disturbed is not None:
            found.setdefault(f"{r.engine_name} {r.backend} {r.precision} {r.budget.name}", []).append(
                r.disturbed
            )
    return [
        f"disturbed: others took up to {max(shares):.0%} of the cores in {len(shares)} runs of {variant}"
        for variant, shares in sorted(found.items())
    ]


def board_markdown(group: Sequence[Record]) -> str:
    """One board: what was asked, on what machine, the table, and what a reader must know."""
    r = group[0]
    facts = f"{machine.describe(r.machine)}. {board_facts(group)}; score = {r.metric}."
    lines = [f"## {shown(r.task)}", "", shown(facts, block=True)]
    lines += ["", markdown_table(COLUMNS, table(group)), "", *markdown_notes(board_notes(group))]
    if phases := phase_table(group):
        outside = f" ({SCORE} is not part of the wall time)" if r.scoring == "outside" else ""
        lines += ["", f"Wall seconds by phase{outside}:", "", markdown_table(phase_header(group), phases)]
    return "\n".join(lines)


def bench_markdown(group: Sequence[Record]) -> str:
    """One model's table of `buzzer bench`."""
    r = group[0]
    facts = f"{machine.describe(r.machine)}. Budget {r.budget.name}; {len({x.repeat for x in group})} rounds, interleaved."
    lines = [
        f"## {shown(bench_table.title(r))}",
        "",
        shown(facts, block=True),
        "",
        markdown_table(bench_table.COLUMNS, bench_table.table(group)),
        "",
    ]
    return "\n".join([*lines, *markdown_notes(bench_notes(group))])


def bench_notes(group: Sequence[Record]) -> list[str]:
    """What a reader of a bench table must know, and what LoadGen said."""
    notes = sorted({note for record in group for note in record.notes})
    for x in group:
        if x.bench and x.bench.loadgen:
            told = x.bench.loadgen
            notes.append(f"{x.backend} {x.precision}: LoadGen {told['result']}, {told['line']}")
    return [*notes, *comparable.told(group), *disturbances(group)]


PUBLISHED_TIMES = "Their times are without scoring, which was the organisers' work."


def published_markdown() -> str:
    """Published figures: never measured here, and under other conditions."""
    header = ("task", "who", "score", "time", "conditions", "source")
    lines = [
        (a["task"], a["who"], a.get("score", ""), a.get("time", ""), a["conditions"], a["source"])
        for a in load_yaml("anchors.yaml")
    ]
    text = "Published by others, not measured by buzzer; other data, other machines: an orientation, not a ranking."
    return f"## Published\n\n{text} {PUBLISHED_TIMES}\n\n{markdown_table(header, [[Markdown(c) for c in line] for line in lines])}"


RULES = """A run counts when it ended inside its budget and its scores lie within the task's tolerance of the
reference engine's on the same data; those runs are ranked by median wall time. Wall time runs from the start of the
process until the submission is written: interpreter, imports, reading the raw file, features, inference, writing.
Scoring comes after it, as in the competitions, where the organisers scored; it is recorded and not compared. In records
before schema minor 1 scoring was part of the wall time: each board says which rule its runs were timed by, and runs
of two rules never stand on one board. Time left is the share of the time budget that was not used. Runs that failed are
listed with their outcome, never left out. Peak memory under cgroups includes the page cache that the run filled."""


def markdown(records: Iterable[Record]) -> str:
    """The whole leaderboard."""
    parts = ["# Leaderboard", RULES]
    records = list(records)
    parts += [board_markdown(group) for group in boards(records).values()]
    parts += [bench_markdown(group) for group in bench_table.boards(records).values()]
    return "\n\n".join([*parts, published_markdown()]) + "\n"
