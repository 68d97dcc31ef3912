"""Notes for readers of a table: how its runs were timed, how they differ, and whether other processes disturbed them."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from buzzer.suite import registry
from buzzer.suite.bench import loadgen
from buzzer.suite.records import comparable
from buzzer.suite.records.repetitions import rows
from buzzer.suite.records.schema import Record
from buzzer.suite.registry import NO_ENGINE
from buzzer.suite.report import published
from buzzer.suite.words import counted

SCORING = {  # Record.scoring -> text in tables
    "inside": "wall time includes scoring",
    "outside": "wall time ends before scoring",
}
AGREEMENT = ("cosine", "max_relative_error", "argmax_agreement")  # scores of a bench run without labels


def timing_notes(group: Sequence[Record]) -> list[str]:
    """Notes on the rule by which comparable runs were timed, and on their differences."""
    return [SCORING[group[0].scoring], *comparable.differences(group)]


def board_notes(group: Sequence[Record]) -> list[str]:
    """The notes of one board of the leaderboard, on the runs that it shows."""
    group = [r for row in rows(group) for r in row.records]
    notes = [SCORING[group[0].scoring], score_note(group), *sorted({published.work_note(r) for r in group})]
    changed = changes_of(group[0])
    notes += [f"not with the task's parameters: {changed}"] if changed else []
    notes += own_notes(group)
    notes += sorted({f"budget {r.budget.name} not met here: {u}" for r in group for u in r.budget.unmet})
    return [note for note in [*notes, *comparable.differences(group), *disturbances(group)] if note]


def own_notes(group: Sequence[Record]) -> list[str]:
    """The notes that the runs have themselves. One that only some have names their variants."""
    with_note: dict[str, list[Record]] = {}
    for r in group:
        for note in r.notes:
            with_note.setdefault(note, []).append(r)
    return [
        note if len(runs) == len(group) else f"{', '.join(sorted(set(map(variant_of, runs))))}: {note}"
        for note, runs in sorted(with_note.items())
    ]


def changes_of(r: Record) -> str:
    """The parameters of a run that differ from the task's, such as `epochs=1 batch=1024`."""
    changed = registry.changed_params(r.task, r.config)
    return " ".join(f"{name}={json.dumps(value)}" for name, value in changed.items())


def score_note(group: Sequence[Record]) -> str:
    """All scores of the best run, and the best possible score if it is known for generated data."""
    best = rows(group)[0].first
    parts = [f"{name} {value:.4f}" for name, value in best.shown_scores.items()]
    ceiling, ceilings = best.details.get("ceiling"), best.details.get("ceilings", {})
    if ceilings:
        values = ", ".join(f"{name} {value:.4f}" for name, value in ceilings.items())
        parts.append(f"best possible on these generated data: {values}")
    elif ceiling is not None:
        parts.append(f"best possible on these generated data {ceiling:.4f}")
    whose = "scores of the first" if len(rows(group)) > 1 else "scores"
    return f"{whose}: {'; '.join(parts)}" if best.shown_scores else ""


def bench_notes(group: Sequence[Record]) -> list[str]:
    """The notes of one table of `buzzer bench`, including LoadGen's verdicts and the scores on labelled inputs."""
    notes = own_notes(group)
    notes += [
        f"{r.backend} {r.precision}: {loadgen.verdict_text(r.bench.loadgen, r.bench.scenario)}"
        for r in group
        if r.bench and r.bench.loadgen
    ]
    for r in group:
        if labelled := [f"{k} {v:.4f}" for k, v in r.shown_scores.items() if k not in AGREEMENT]:
            notes.append(f"{r.backend} {r.precision}: {', '.join(labelled)}")
    return [*dict.fromkeys(notes), *comparable.differences(group), *disturbances(group)]


def disturbances(records: Iterable[Record]) -> list[str]:
    """For each variant, the number of runs whose times are unreliable because other processes used its cores."""
    shares: dict[str, list[float]] = {}
    for r in records:
        if r.disturbed is not None:
            shares.setdefault(variant_of(r), []).append(r.disturbed)
    return [
        f"disturbed: others took up to {max(taken):.0%} of the cores in {counted(len(taken), 'run')} of {variant}"
        for variant, taken in sorted(shares.items())
    ]


def resumptions(records: Iterable[Record]) -> list[str]:
    """For each variant, the number of runs that were interrupted and resumed: their times are sums over several processes."""
    runs = Counter(variant_of(r) for r in records if r.sittings > 1)
    return [
        f"interrupted and resumed: {counted(n, 'run')} of {variant}" for variant, n in sorted(runs.items())
    ]


def variant_of(r: Record) -> str:
    """The variant of a run in words."""
    engine = "" if r.engine == NO_ENGINE else f"{r.engine_name} "
    return f"{engine}{r.backend} {r.precision} {r.budget.name}"
