"""Which records may be compared, and notes on how compared records differ.

All code that groups records takes its keys from here: leaderboards, comparisons, regressions, noise, the gate.
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
    "training sample": lambda r: r.train_scale,
    "parameters": lambda r: r.config_hash,
    "seed": lambda r: r.seed,
}
# Runs that agree in these have the same inputs, parameters and fit, so their scores must agree.
QUESTION: Facts = JOB | {"fit": lambda r: r.fit_id}
# The run times of runs that agree in these may be compared.
TIMES: Facts = JOB | {
    "scale": lambda r: r.scale,
    "data source": lambda r: r.data_source,
    "machine": lambda r: machine.describe(r.machine),
    "scoring": lambda r: r.scoring,
}
# For comparisons of small differences (A/A pairs, older records), runs must also agree in these.
LIMITS: Facts = {"enforcement": lambda r: r.enforcement}
GROWTH = ("scale", "data")  # facts that may differ in a comparison over data sizes
# Parameters of a bench that may differ within a table: how long to measure, the parameters that identify a row, and the path of the
# inputs, which are identified by their hash.
ROW_PARAMETERS = ("count", "seconds", "at_most", "packing", "inputs_file")
SHOWN = 4  # commits and versions that a note lists


def question(r: Record) -> Key:
    """The facts that must be equal for scores to be compared."""
    return _key(QUESTION, r)


def times(r: Record, without: Sequence[str] = ()) -> Key:
    """The facts that must be equal for run times to be compared. without: names of facts to leave out."""
    return _key({name: fact for name, fact in TIMES.items() if name not in without}, r)


def close_times(r: Record) -> Key:
    """The facts that must be equal for small differences of run times to be compared."""
    return _key(TIMES | LIMITS, r)


def noise(r: Record) -> Key:
    """The facts that the noise of run times depends on: the machine, the enforcement of limits, and the timed part of the run."""
    return _key({"machine": TIMES["machine"], "scoring": TIMES["scoring"]} | LIMITS, r)


def bench(r: Record) -> Key:
    """The facts that the rows of one bench table have in common. The sizes come first, because tables are sorted by them."""
    config = r.config
    sizes = (config["batch"], str(config["seq"]), config["lengths"], config["scenario"])
    # A model is identified by its hash. Older records of a named model have none.
    ignored = (*ROW_PARAMETERS, "model") if "model_hash" in config else ROW_PARAMETERS
    others = sorted((name, repr(value)) for name, value in config.items() if name not in ignored)
    return (
        r.task,
        config.get("model_hash", ""),
        *sizes,
        r.device,
        r.budget.name,
        machine.describe(r.machine),
        r.seed,
        r.scoring,
        *others,
    )


def _key(facts: Facts, r: Record) -> Key:
    return tuple(fact(r) for fact in facts.values())


# ---- notes on what differs ---------------------------------------------------------------------------------------


def differences(records: Iterable[Record]) -> list[str]:
    """Notes on how compared records differ: in commit, library versions, system, fit, enforcement."""
    ran = [r for r in records if r.enforcement != "none"]
    notes = [
        *_commits(ran),
        *_versions(ran),
        *_systems(ran),
        *_fits(ran),
    ]
    polled = sum(r.enforcement == "polled" for r in ran)
    if polled:
        some = "" if polled == len(ran) else f" in {polled} of {len(ran)} runs"
        notes.append(f"limits checked by polling{some}, not enforced by the kernel")
    return notes


def _commits(records: Sequence[Record]) -> list[str]:
    runs = Counter(short(r.git_commit) for r in sorted(records, key=lambda r: r.created, reverse=True))
    if len(runs) < 2:
        return []
    commits = [f"{commit} ({count} {'run' if count == 1 else 'runs'})" for commit, count in runs.items()]
    return [f"records of {len(runs)} commits: {', '.join(_cut(commits))}"]


def short(commit: str | None) -> str:
    """A commit's first 7 digits, with `+dirty` for local changes; `an installed package` for None."""
    if commit is None:
        return "an installed package"
    name, plus, dirty = commit.partition("+")
    return name[:7] + plus + dirty


def _versions(records: Sequence[Record]) -> list[str]:
    versions: dict[str, set[str]] = {}
    for r in records:
        for name, version in r.versions.items():
            versions.setdefault(name, set()).add(version)
    differing = [
        f"{name} {' and '.join(_cut(sorted(v)))}" for name, v in sorted(versions.items()) if len(v) > 1
    ]
    return [f"library versions differ: {', '.join(differing)}"] if differing else []


def _systems(records: Iterable[Record]) -> list[str]:
    systems = sorted({r.machine.system for r in records})
    return [f"system: {' and '.join(_cut(systems))}"] if len(systems) > 1 else []


def _fits(records: Iterable[Record]) -> list[str]:
    """A note if runs of one job used different fits."""
    fits: dict[Key, set[str]] = {}
    for r in records:
        if r.fit_id is not None:
            fits.setdefault(_key(JOB, r), set()).add(r.fit_id)
    most = max((len(ids) for ids in fits.values()), default=0)
    return [f"runs of {most} fits"] if most > 1 else []


def _cut(items: Sequence[str]) -> list[str]:
    """The first items, and the number of further items."""
    more = len(items) - SHOWN
    return [*items[:SHOWN], *([f"{more} more"] if more > 0 else [])]
