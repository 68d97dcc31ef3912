"""The plan of `--dry-run` as a table and as JSON: fits and timed runs in order, their estimated times, and what cannot run here.

Without estimates (None) the runs are on given files, whose size is not known before they are checked.
"""

import json
from collections.abc import Iterator, Sequence

from buzzer.suite.report.format import clock_text
from buzzer.suite.report.table import Table, table
from buzzer.suite.run import plan
from buzzer.suite.run.estimates import Estimates
from buzzer.suite.run.plan import Planned, Run
from buzzer.suite.words import counted

COLUMNS = (
    *("job", "task", "engine", "backend", "precision", "device", "budget", "size", "train scale"),
    *("cluster", "rounds", "about", "cannot run here"),
)


def json_lines(items: Sequence[Planned], estimates: Estimates | None) -> Iterator[str]:
    """One object for each timed run."""
    for item in items:
        r = item.run
        if r.job == "fit":
            continue
        fields = {
            "task": r.task.name,
            "engine": r.engine,
            "backend": r.backend,
            "precision": r.precision,
            "device": r.device,
            "budget": r.budget.name,
            "scale": None if estimates is None else r.scale,
            "train_scale": r.train_scale,
            "seed": r.seed,
            "repeat": r.repeat,
            "control": r.control,
            "cluster": r.cluster,
            "expected_s": None if estimates is None else estimates.seconds(r),
            "problem": "" if item.problem is None else item.problem.message,
        }
        yield json.dumps(fields)


def plan_table(items: Sequence[Planned], estimates: Estimates | None) -> Table:
    """A row for each fit and each variant with its number of rounds, in the order of the plan."""
    rounds: dict[tuple[str, ...], list[Planned]] = {}
    for item in items:
        rounds.setdefault(variant(item.run, estimates is not None), []).append(item)
    lines = [(*cells, *more(same, estimates)) for cells, same in rounds.items()]
    timed = [item.run for item in items if item.run.job != "fit"]
    fits = len({variant(item.run, True) for item in items if item.run.job == "fit"})
    title = f"{counted(len(timed), 'timed run')}, and {counted(fits, 'fit')} unless the cache has them"
    return table(title, COLUMNS, lines, notes(items, estimates), caption=limit(timed))


def variant(r: Run, sized: bool) -> tuple[str, ...]:
    """The cells that name a run: everything but its round."""
    sample = "" if r.train_scale is None else f"{r.train_scale:g}"
    engine = "" if r.engine == "none" else r.engine
    budget = "" if r.job == "fit" else r.budget.name
    what = r.job, r.task.name, engine, r.backend, r.precision, r.device
    return *what, budget, size(r) if sized else "of --data", sample, r.cluster


def size(r: Run) -> str:
    """The share of the official data, or the rows of a run of `buzzer bench`."""
    if r.job != "bench":
        return f"scale {r.scale:g}"
    packing = r.task.params["packing"]
    return f"{r.task.params['batch']} rows{'' if packing == 'padded' else f', {packing}'}"


def more(same: Sequence[Planned], estimates: Estimates | None) -> tuple[str, str, str]:
    """Number of rounds, estimated time of one, and why it cannot run here."""
    first = same[0]
    pairs = sum(item.run.control for item in same)
    count = f"{len(same) - pairs} + {pairs} A/A" if pairs else str(len(same))
    if first.problem is not None:
        return count, "", first.problem.message
    seconds = None if estimates is None else estimates.seconds(first.run)
    return count, "" if seconds is None else clock_text(seconds), ""


def limit(timed: Sequence[Run]) -> str:
    """The time that the timed runs take if each uses its whole budget, in words."""
    worst = plan.worst_case_s(timed)
    return f"at worst {clock_text(worst)}" if worst < float("inf") else "no time limit"


def notes(items: Sequence[Planned], estimates: Estimates | None) -> list[str]:
    """How the estimate was made, and its total."""
    if estimates is None:
        return [
            "no estimate: the size of the files of --data is known when they are checked, before the first run"
        ]
    able = [item.run for item in items if item.problem is None]
    known = [seconds for run in able if (seconds := estimates.seconds(run)) is not None]
    if not known:
        return ["no estimate: no earlier run of this plan on this machine is among the records of --out"]
    total = f"{len(known)} of {len(able)} take about {clock_text(sum(known))}"
    return [f"estimated from earlier runs in --out on this machine, fits included: {total}"]
