"""The result table of a README, from records: no figure in it is typed by hand."""

from collections.abc import Iterable, Sequence

from buzzer.errors import UsageError
from buzzer.suite import registry
from buzzer.suite.escape import code
from buzzer.suite.escape import markdown as shown
from buzzer.suite.records import comparable, machine
from buzzer.suite.records.record import Record
from buzzer.suite.report import leaderboard
from buzzer.suite.report.leaderboard import RunGroup

BEGIN = "<!-- results: made by `make report`, do not edit -->"
END = "<!-- end of results -->"
HEADER = ("task", "data", "run", "budget", "score", "wall s", "peak MB", "against 1 core")


def fill(text: str, records: Iterable[Record]) -> str:
    """`text` with what stands between the two markers replaced by the table. Raises UsageError without them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError(
            "no markers for the result table", f"put these two lines into the file: {BEGIN} {END}"
        )
    return f"{before}{BEGIN}\n\n{table(records)}\n\n{END}{after}"


def table(records: Iterable[Record]) -> str:
    """Of each task and machine the board nearest to the official job; of each engine and budget the fastest run."""
    boards = main_boards(records)
    rules = sorted({group[0].scoring for group in boards})
    on = [machine.describe(group[0].machine) for group in boards]
    machines = sorted(set(on))
    several = len(machines) > 1
    letters = {facts: chr(ord("A") + i) for i, facts in enumerate(machines)}
    lines = [
        (*cells, *([group[0].scoring] if len(rules) > 1 else []), *([letters[facts]] if several else []))
        for group, facts in zip(boards, on, strict=True)
        for cells in board_lines(group)
    ]
    header = (*HEADER, *(["scoring"] if len(rules) > 1 else []), *(["machine"] if several else []))
    text = leaderboard.markdown_table(header, lines)
    told = "; ".join(f"{letters[facts]}: {shown(facts)}" if several else shown(facts) for facts in machines)
    mixed = "\nSome boards hold records that differ in commit, library versions or limits; the leaderboard says which."
    differ = mixed if any(comparable.differences(group) for group in boards) else ""
    return f"{text}\n\nMeasured on {told}. {explanation(rules)}{differ}"


def explanation(rules: Sequence[str]) -> str:
    """`rules`: of the boards that are shown, whether scoring is inside or outside their wall time."""
    rule = f" ({leaderboard.SCORING[rules[0]]})" if len(rules) == 1 else ""
    more = (
        ""
        if len(rules) < 2
        else "\nScoring is inside or outside the wall time, as the column says; the two are not comparable."
    )
    return (
        f"`seed-cpu` is 1 core, 20 GB, 24 h. Median wall seconds of the whole\n"
        f"job{rule}, slowest first; of several backends the fastest is shown, and the reference engine and backend on one core,\n"
        f"against which the last column is the speed-up.{more}"
    )


def main_boards(records: Iterable[Record]) -> list[list[Record]]:
    """One board a task and machine: the largest, then official files before generated ones, the task's own parameters before others,
    the newest. A task whose scoring is outside the wall time in some has those only."""
    best: dict[tuple[str, str], list[Record]] = {}
    for group in leaderboard.boards(records).values():
        if not any(row.ranked for row in leaderboard.rows(group)):
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
    """Whether a run had its task's parameters as they stand in configs/."""
    try:
        return registry.task(r.task).config_hash == r.config_hash
    except UsageError:
        return False


def board_lines(group: list[Record]) -> list[tuple[str, ...]]:
    rows = [row for row in leaderboard.rows(group) if row.ranked]
    base = one_core_reference(rows)
    fastest: dict[tuple[str, ...], RunGroup] = {}
    for row in rows:  # fastest first
        r = row.first
        fastest.setdefault((r.budget.name, r.engine_name, r.device, r.precision), row)
    shown = [row for row in reversed(rows) if row is base or row in fastest.values()]
    return [line(row, base) for row in shown]


def one_core_reference(rows: Iterable[RunGroup]) -> RunGroup | None:
    """The reference variant's run on one core, which is what a competitor writes and what all are compared with."""
    for row in rows:
        r = row.first
        if r.gate.status == "reference" and r.budget.cores == 1 and r.device == "cpu":
            return row
    return None


def line(row: RunGroup, base: RunGroup | None) -> tuple[str, ...]:
    r = row.first
    engine = "" if r.engine == registry.NO_ENGINE else f"{r.engine_name}, "
    score, peak = r.scores.get(r.metric), row.peak
    return (
        code(r.task),
        f"{r.data_source}, scale {r.scale:g}",
        f"{engine}{r.backend}, {r.precision}{' on GPU' if r.device == 'cuda' else ''}",
        r.budget.name,
        "" if score is None else f"{r.metric} {score:.4f}",
        f"{row.wall_s:.1f}",
        "" if peak is None else f"{peak / 1e6:,.0f}",
        "" if base is None else f"{base.wall_s / row.wall_s:.1f}×",
    )
