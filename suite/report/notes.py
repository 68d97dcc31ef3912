"""What a reader of a table must know: how its runs were timed, in what they differ, and whether others disturbed them."""

from collections.abc import Iterable, Sequence

from buzzer.suite.records import comparable
from buzzer.suite.records.record import Record
from buzzer.suite.records.repetitions import rows
from buzzer.suite.registry import NO_ENGINE
from buzzer.suite.report.format import counted

SCORING = {  # Record.scoring -> how a table says it
    "inside": "wall time includes scoring",
    "outside": "wall time ends before scoring",
}


def timing_notes(group: Sequence[Record]) -> list[str]:
    """By which rule comparable runs were timed, and in what they differ."""
    return [SCORING[group[0].scoring], *comparable.differences(group)]


def board_notes(group: Sequence[Record]) -> list[str]:
    """The notes of one board of the leaderboard."""
    notes = [SCORING[group[0].scoring], score_note(group), *sorted({note for r in group for note in r.notes})]
    notes += sorted({f"budget {r.budget.name} not met here: {u}" for r in group for u in r.budget.unmet})
    return [note for note in [*notes, *comparable.differences(group), *disturbances(group)] if note]


def score_note(group: Sequence[Record]) -> str:
    """All scores of the best run, and the best possible score where generated data have a known one."""
    best = rows(group)[0].first
    parts = [f"{name} {value:.4f}" for name, value in best.scores.items()]
    ceiling = best.details.get("ceiling")
    parts += [f"best possible on these generated data {ceiling:.4f}"] if ceiling is not None else []
    return f"scores: {'; '.join(parts)}" if parts else ""


def bench_notes(group: Sequence[Record]) -> list[str]:
    """The notes of one table of `buzzer bench`, LoadGen's verdicts included."""
    notes = sorted({note for record in group for note in record.notes})
    notes += [
        f"{r.backend} {r.precision}: LoadGen {r.bench.loadgen['result']}, {r.bench.loadgen['line']}"
        for r in group
        if r.bench and r.bench.loadgen
    ]
    return [*notes, *comparable.differences(group), *disturbances(group)]


def disturbances(records: Iterable[Record]) -> list[str]:
    """For each variant, in how many runs other processes took so much of its cores that its times are not reliable."""
    shares: dict[str, list[float]] = {}
    for r in records:
        if r.disturbed is not None:
            engine = "" if r.engine == NO_ENGINE else f"{r.engine_name} "
            variant = f"{engine}{r.backend} {r.precision} {r.budget.name}"
            shares.setdefault(variant, []).append(r.disturbed)
    return [
        f"disturbed: others took up to {max(taken):.0%} of the cores in {counted(len(taken), 'run')} of {variant}"
        for variant, taken in sorted(shares.items())
    ]
