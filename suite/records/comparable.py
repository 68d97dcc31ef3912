"""What records must have in common to be compared, and what a reader is told where they differ.

Everything that groups records takes its keys from here: boards, comparisons, regressions, noise, the gate.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence

from buzzer.suite.records import machine
from buzzer.suite.records.schema import Record

Facts = dict[str, Callable[[Record], Hashable]]
Key = tuple[Hashable, ...]

JOB: Facts = {
    "task": lambda r: r.task,
    "job": lambda r: r.job,
    "data": lambda r: r.data_fingerprint,
    "parameters": lambda r: r.config_hash,
    "seed": lambda r: r.seed,
}
# Runs that agree in these were asked the same of the same model, so that their scores must agree.
QUESTION: Facts = JOB | {"fit": lambda r: r.fit_id}
# Runs that agree in these may be compared by their times.
TIMES: Facts = JOB | {
    "scale": lambda r: r.scale,
    "data source": lambda r: r.data_source,
    "machine": lambda r: machine.describe(r.machine),
    "scoring": lambda r: r.scoring,
}
# Runs must agree in these too where a small difference is looked for: between A/A pairs, and with older records.
LIMITS: Facts = {"enforcement": lambda r: r.enforcement}
GROWTH = ("scale", "data")  # in which the runs of a comparison over sizes differ
# Parameters of a bench in which one table's lines may differ: how many runs are timed, and what tells lines apart.
LINES = ("count", "seconds", "at_most", "packing")
SHOWN = 4  # commits and versions that a note names


def question(r: Record) -> Key:
    return _key(QUESTION, r)


def times(r: Record, without: Sequence[str] = ()) -> Key:
    """What must be equal for run times to be compared; `without` some of the facts' names."""
    return _key({name: fact for name, fact in TIMES.items() if name not in without}, r)


def near(r: Record) -> Key:
    """What must be equal for run times to be compared closely."""
    return _key(TIMES | LIMITS, r)


def here(r: Record) -> Key:
    """What makes the noise of run times: the machine, how limits are enforced, and what is timed."""
    return _key({"machine": TIMES["machine"], "scoring": TIMES["scoring"]} | LIMITS, r)


def bench(r: Record) -> Key:
    """What the lines of one bench table have in common: the sizes first, by which tables are sorted."""
    c = r.config
    sizes = (c["batch"], str(c["seq"]), c["lengths"], c["scenario"])
    known = (*LINES, "model") if "model_hash" in c else LINES  # a path's model is known by its contents
    more = sorted((k, repr(v)) for k, v in c.items() if k not in known)
    return (
        r.task,
        c.get("model_hash", ""),
        *sizes,
        r.device,
        r.budget.name,
        machine.describe(r.machine),
        r.seed,
        r.scoring,
        *more,
    )


def _key(facts: Facts, r: Record) -> Key:
    return tuple(fact(r) for fact in facts.values())


# ---- what may differ, and is told --------------------------------------------------------------------------------


def told(records: Iterable[Record]) -> list[str]:
    """Notes on what records that stand together differ in: commit, library versions, system, fit, enforcement."""
    ran = [r for r in records if r.enforcement != "none"]
    notes = [
        *_commits(ran),
        *_versions(ran),
        *_values("system", Counter(r.machine.system for r in ran)),
        *_fits(ran),
    ]
    polled = sum(r.enforcement == "polled" for r in ran)
    if polled:
        some = "" if polled == len(ran) else f" in {polled} of {len(ran)} runs"
        notes.append(f"limits watched by polling{some}, not enforced by the kernel")
    return notes


def _commits(records: Sequence[Record]) -> list[str]:
    found = Counter(short(r.git_commit) for r in sorted(records, key=lambda r: r.created, reverse=True))
    if len(found) < 2:
        return []
    named = [f"{commit} ({count} {'run' if count == 1 else 'runs'})" for commit, count in found.items()]
    return [f"records of {len(found)} commits: {', '.join(_cut(named))}"]


def short(commit: str | None) -> str:
    """A commit as people write it, with its mark of local changes."""
    if commit is None:
        return "an install"
    name, plus, dirty = commit.partition("+")
    return name[:7] + plus + dirty


def _versions(records: Sequence[Record]) -> list[str]:
    found: dict[str, Counter[str]] = {}
    for r in records:
        for name, version in r.versions.items():
            found.setdefault(name, Counter())[version] += 1
    told = [f"{name} {' and '.join(_cut(sorted(v)))}" for name, v in sorted(found.items()) if len(v) > 1]
    return [f"library versions differ: {', '.join(told)}"] if told else []


def _values(what: str, found: Counter[str]) -> list[str]:
    return [f"{what}: {' and '.join(_cut(sorted(found)))}"] if len(found) > 1 else []


def _fits(records: Iterable[Record]) -> list[str]:
    """That runs of one job loaded different fits."""
    found: dict[Key, set[str]] = {}
    for r in records:
        if r.fit_id is not None:
            found.setdefault(_key(JOB, r), set()).add(r.fit_id)
    most = max((len(fits) for fits in found.values()), default=0)
    return [f"runs of {most} fits"] if most > 1 else []


def _cut(named: Sequence[str]) -> list[str]:
    more = len(named) - SHOWN
    return [*named[:SHOWN], *([f"{more} more"] if more > 0 else [])]
