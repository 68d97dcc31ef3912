"""The parts of a README that are made from records: what was found, and a table with one row per task."""

from collections.abc import Iterable, Sequence

from buzzer.errors import UsageError
from buzzer.suite.analysis import published_job
from buzzer.suite.analysis.statistics import LEAST_ROUNDS
from buzzer.suite.escape import Markdown, code
from buzzer.suite.escape import markdown as escaped
from buzzer.suite.records import comparable, machine
from buzzer.suite.records.schema import Record
from buzzer.suite.report import notes, page_first, published, summary
from buzzer.suite.report.format import seconds_text
from buzzer.suite.report.summary import TaskSummary
from buzzer.suite.report.table import table
from buzzer.suite.words import counted

MADE = "made by `make report`, do not edit -->"
SUMMARY = (f"<!-- summary: {MADE}", "<!-- end of summary -->")
RESULTS = (f"<!-- results: {MADE}", "<!-- end of results -->")
HEADER = ("task", "data", "plain, one core", "fastest here", "gain", "by")
MOST_ROWS = 10
PLAIN = (
    "Median wall time of the whole job, from raw files to the submission. Plain is the reference on one core, as most competitors use:"
    " pandas, or no engine where a task has no tables, with PyTorch and XGBoost."
)
GAIN = (
    "The gain is the mean ratio over rounds, with its 95 % interval"
    f" from {LEAST_ROUNDS} rounds on. Within noise: the interval contains 1, or two runs of the same variant differ as much."
)


def fill(text: str, records: Iterable[Record]) -> str:
    """`text` with what is between the markers replaced: the findings, the table, or both. Raises UsageError without markers."""
    records = list(records)
    found = summary.summaries(records)
    parts = {SUMMARY: findings(found, records), RESULTS: result_table(found, on_leaderboard(records))}
    filled = {markers: replaced(text, markers, part) for markers, part in parts.items()}
    if not any(filled.values()):
        raise UsageError(
            "no markers for the result table", f"put these two lines into the file: {' '.join(RESULTS)}"
        )
    for markers, part in parts.items():
        text = replaced(text, markers, part) or text
    return text


def on_leaderboard(records: Iterable[Record]) -> int:
    """The number of tasks with timed runs."""
    return len({r.task for r in records if r.job == "predict" and not r.published})


def replaced(text: str, markers: tuple[str, str], part: str) -> str:
    """`text` with the part between two markers replaced; empty without them."""
    before, begin, rest = text.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    return f"{before}{begin}\n\n{part}\n\n{end}{after}" if begin and end else ""


def findings(found: Sequence[TaskSummary], records: Sequence[Record]) -> str:
    """What was found, and what has run on a GPU, as a list in Markdown."""
    both = page_first.dumbbells(records)
    pairs = [f"{x.label} ({counted(x.rounds, 'round')})" for x in both.lines]
    against = [f"The fastest run on each device of a machine: {'; '.join(pairs)}."] if pairs else []
    sentences = [*summary.findings(found), summary.gpu_status(records), *against, both.left_out]
    return "\n".join(f"- {escaped(sentence, block=True)}" for sentence in filter(None, sentences))


def rank(s: TaskSummary) -> tuple[bool, bool, float]:
    """The order in which tasks are shown: first those with an interval, then those with scores, then the longest."""
    return len(s.plain.records) < LEAST_ROUNDS, not s.first.shown_scores, -s.plain.wall_s


def result_table(found: Sequence[TaskSummary], tasks: int) -> str:
    """The table as Markdown: for each task its plain run and its fastest run. tasks: number of tasks on the leaderboard."""
    if not found:
        return "There is no ranked run of a reference engine on one core yet."
    shown = sorted(sorted(found, key=rank)[:MOST_ROWS], key=lambda s: s.task)
    machines = sorted({machine.describe(s.first.machine) for s in shown})
    letters = {facts: chr(ord("A") + i) for i, facts in enumerate(machines)} if len(machines) > 1 else {}
    with_work = any(published_job.job_of(s.task) for s in shown)
    header = (*HEADER, *([published.WORK] if with_work else []), *(["machine"] if letters else []))
    lines = [
        (
            *line(s),
            *([published.work_text(s.best.first)] if with_work else []),
            *([letters[machine.describe(s.first.machine)]] if letters else []),
        )
        for s in shown
    ]
    where = "; ".join(
        f"{letters[facts]}: {escaped(facts)}" if letters else escaped(facts) for facts in machines
    )
    return f"{table('', header, lines).grid()}\n\n{explanation(shown, tasks)} Measured on {where}."


def line(s: TaskSummary) -> tuple[str, ...]:
    """The cells of a task."""
    r, gain = s.first, s.gain
    changes = [code(changed)] if (changed := notes.changes_of(r)) else []
    changes += [escaped(summary.RANDOM_WEIGHTS)] if r.random_weights else []
    data = Markdown(", ".join([escaped(f"{r.data_source}, {r.rows:,} rows"), *changes]))
    return (
        code(r.task),
        data,
        seconds_text(s.plain.wall_s),
        seconds_text(s.best.wall_s),
        "" if gain is None else gain.verdict,
        s.by,
    )


def explanation(shown: Sequence[TaskSummary], tasks: int) -> str:
    """How to read the table. tasks: number of tasks on the leaderboard."""
    rules = {s.first.scoring for s in shown}
    lines = [PLAIN, GAIN]
    if "inside" in rules:
        inside = ", ".join(code(s.task) for s in shown if s.first.scoring == "inside")
        lines.append(f"Times of older records include scoring: {inside}.")
    if any(comparable.differences(r for row in s.ranked for r in row.records) for s in shown):
        lines.append(
            "Some boards hold records of different commits, library versions or limits; the leaderboard names them."
        )
    if len(shown) < tasks:
        more = tasks - len(shown)
        lines.append(f"{counted(more, 'more task')} {'is' if more == 1 else 'are'} on the leaderboard.")
    return "\n".join(lines)
