"""The result table of a README, generated from records."""

from collections.abc import Iterable, Sequence

from buzzer.errors import UsageError
from buzzer.suite import registry
from buzzer.suite.escape import Markdown, code
from buzzer.suite.escape import markdown as escaped
from buzzer.suite.records import comparable, machine
from buzzer.suite.records.repetitions import RunGroup, boards, rows
from buzzer.suite.records.schema import Record
from buzzer.suite.report import headline, notes
from buzzer.suite.report.format import grouped
from buzzer.suite.report.table import table

BEGIN = "<!-- results: made by `make report`, do not edit -->"
END = "<!-- end of results -->"
HEADER = ("task", "data", "run", "budget", "score", "wall s", "peak MB", "against 1 core")


def fill(text: str, records: Iterable[Record]) -> str:
    """`text` with the part between the two markers replaced by the published job and the table. Raises UsageError without them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError(
            "no markers for the result table", f"put these two lines into the file: {BEGIN} {END}"
        )
    records = list(records)
    parts = [*(h.table().markdown(level=0) for h in headline.headlines(records)), result_table(records)]
    text = "\n\n".join(parts)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def result_table(records: Iterable[Record]) -> str:
    """The table as Markdown: for each task and machine the board nearest to the official job, with the fastest run of each engine and
    budget."""
    shown = main_boards(records)
    rules = sorted({group[0].scoring for group in shown})
    machines = sorted({machine.describe(group[0].machine) for group in shown})
    letters = {facts: chr(ord("A") + i) for i, facts in enumerate(machines)}
    mixed, several = len(rules) > 1, len(machines) > 1
    header = (*HEADER, *(["scoring"] if mixed else []), *(["machine"] if several else []))
    lines = []
    for group in shown:
        r = group[0]
        more = [*([r.scoring] if mixed else []), *([letters[machine.describe(r.machine)]] if several else [])]
        lines += [(*cells, *more) for cells in board_lines(group)]
    measured = "; ".join(
        f"{letters[facts]}: {escaped(facts)}" if several else escaped(facts) for facts in machines
    )
    differ = any(comparable.differences(group) for group in shown)
    changed = any(notes.changes_of(group[0]) for group in shown)
    text = f"Measured on {measured}. {explanation(rules, differ, changed)}"
    return f"{table('', header, lines).grid()}\n\n{text}"


def explanation(rules: Sequence[str], differ: bool, changed: bool) -> str:
    """How to read the table.

    rules: whether scoring is inside or outside the wall times. differ: whether the runs of a board differ in commit, versions or limits.
    changed: whether a board has other parameters than its task.
    """
    rule = f" ({notes.SCORING[rules[0]]})" if len(rules) == 1 else ""
    lines = [
        "`seed-cpu` is 1 core, 20 GB, 24 h.",
        f"Wall seconds are medians of the whole job{rule}, slowest first.",
        "Of several backends the fastest is shown, and always the reference engine and backend on one core.",
        "The last column is the speed-up over that run.",
    ]
    if len(rules) > 1:
        lines.append(
            "Scoring is inside or outside the wall time, as the column says; the two are not comparable."
        )
    if changed:
        lines.append(
            "Parameters that differ from the task's are named beside the data: a score with `epochs=1` is that of one epoch."
        )
    if differ:
        lines.append(
            "Some boards hold records of different commits, library versions or limits; the leaderboard names them."
        )
    return "\n".join(lines)


def main_boards(records: Iterable[Record]) -> list[list[Record]]:
    """One board per task and machine: the largest, official files before generated ones, the task's own parameters before
    others, then the newest. Boards whose wall time includes scoring are left out if the task has other boards."""
    best: dict[tuple[str, str], list[Record]] = {}
    for group in boards(records).values():
        if not any(row.ranked for row in rows(group)):
            continue
        key = (group[0].task, machine.describe(group[0].machine))
        best[key] = max(best.get(key, group), group, key=_worth)
    outside = {group[0].task for group in best.values() if group[0].scoring == "outside"}
    return [
        group
        for _, group in sorted(best.items())
        if group[0].scoring == "outside" or group[0].task not in outside
    ]


def _worth(group: list[Record]) -> tuple[object, ...]:
    r = group[0]
    outside = r.scoring == "outside"
    return outside, r.scale, r.data_source == "official", as_registered(r), max(x.created for x in group)


def as_registered(r: Record) -> bool:
    """Whether a run had the default parameters of its task in configs/."""
    try:
        return registry.task(r.task).config_hash == r.config_hash
    except UsageError:
        return False


def board_lines(group: list[Record]) -> list[tuple[str, ...]]:
    """The rows of a board, slowest first: the reference on one core, and the fastest run of each engine, budget, device and precision."""
    ranked = [row for row in rows(group) if row.ranked]
    base = one_core_reference(ranked)
    fastest: dict[tuple[str, ...], RunGroup] = {}
    for row in ranked:  # fastest first
        r = row.first
        fastest.setdefault((r.budget.name, r.engine_name, r.device, r.precision), row)
    return [line(row, base) for row in reversed(ranked) if row is base or row in fastest.values()]


def one_core_reference(groups: Iterable[RunGroup]) -> RunGroup | None:
    """The run of the reference engine and backend on one core, as most competitors use; None if there is none."""
    for row in groups:
        r = row.first
        if r.gate.status == "reference" and r.budget.cores == 1 and r.device == "cpu":
            return row
    return None


def line(row: RunGroup, base: RunGroup | None) -> tuple[str, ...]:
    """The cells of one run. base: the run that the last column compares with."""
    r = row.first
    changes = [code(changed)] if (changed := notes.changes_of(r)) else []
    engine = "" if r.engine == registry.NO_ENGINE else f"{r.engine_name}, "
    return (
        code(r.task),
        Markdown(", ".join([r.data_source, f"scale {r.scale:g}", *changes])),
        f"{engine}{r.backend}, {r.precision}{' on GPU' if r.device == 'cuda' else ''}",
        r.budget.name,
        "" if row.score is None else f"{r.metric} {row.score:.4f}",
        f"{row.wall_s:.1f}",
        grouped(None if row.peak is None else row.peak / 1e6, 0),
        "" if base is None else f"{base.wall_s / row.wall_s:.1f}×",
    )
