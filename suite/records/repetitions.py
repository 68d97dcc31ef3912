"""Repetitions of one run as a group, and the groups whose times may be compared.

Every table, chart and comparison takes medians, peaks and head-room from here.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from buzzer.models.api.context import SCORE
from buzzer.suite.records import comparable
from buzzer.suite.records.schema import Record


@dataclass(frozen=True)
class Repetitions:
    """Records of one variant on the same data, in the order of their repetition."""

    records: tuple[Record, ...]

    @property
    def first(self) -> Record:
        """The first repetition. It is used for the facts that all repetitions have in common."""
        return self.records[0]

    @property
    def worst(self) -> Record:
        """The first record whose outcome is not ok, else the first record."""
        return next((r for r in self.records if r.outcome != "ok"), self.first)

    @property
    def failed(self) -> bool:
        """Whether any repetition has an outcome other than ok."""
        return self.worst.outcome != "ok"

    def samples(self, name: str) -> list[float]:
        """The samples of that name of all repetitions, in seconds."""
        return [s for r in self.records for s in r.samples.get(name, [])]


@dataclass(frozen=True)
class HeadRoom:
    """The unused shares of a run's budget; None without a limit or a measurement."""

    time: float | None
    memory: float | None


def unused(limit: float | None, used: float | None) -> float | None:
    """The unused share of a limit: 0.9 = nine tenths are unused, negative = the limit was exceeded."""
    return None if limit is None or used is None else 1 - used / limit


@dataclass(frozen=True)
class RunGroup(Repetitions):
    """Repetitions of one timed run, summarised by their medians."""

    @property
    def ranked(self) -> bool:
        """Whether every repetition ended ok and its scores were compared with the reference's."""
        good = (r.outcome == "ok" and r.gate.status in ("passed", "reference") for r in self.records)
        return all(good) and not self.first.published

    @property
    def disturbed(self) -> bool:
        """Whether other processes used the cores of every repetition."""
        return all(r.disturbed is not None for r in self.records)

    @property
    def started(self) -> bool:
        """Whether any repetition was started."""
        return any(r.enforcement != "none" for r in self.records)

    @property
    def walls(self) -> dict[int, float]:
        """Wall seconds by repetition."""
        return {r.repeat: r.wall_s for r in self.records}

    @property
    def wall_s(self) -> float:
        """Median wall seconds of the runs that were started; 0 if none was."""
        return median([r.wall_s for r in self.records if r.enforcement != "none"] or [0.0])

    @property
    def cpu_s(self) -> float | None:
        """Median CPU seconds; None if they are not known."""
        seconds = [r.cpu_s for r in self.records if r.cpu_s is not None]
        return median(seconds) if seconds else None

    @property
    def peak(self) -> int | None:
        """Highest peak of host memory of all repetitions in bytes; None if it is not known."""
        return max(
            (r.peak_memory_bytes for r in self.records if r.peak_memory_bytes is not None), default=None
        )

    @property
    def energy_j(self) -> float | None:
        """Median joules of all counted sources; None without a counter."""
        sums = [sum(r.energy_j.values()) for r in self.records if r.energy_j]
        return median(sums) if sums else None

    @property
    def score(self) -> float | None:
        """`Record.score` of the first run."""
        return self.first.score

    def phase_s(self, name: str) -> float | None:
        """Median wall seconds of a phase over the runs that reached it; None if none did."""
        seconds = [s for r in self.records if (s := phase_s(r, name)) is not None]
        return median(seconds) if seconds else None

    @property
    def imports_s(self) -> float | None:
        """Median seconds that the runs took to import packages; None in older records."""
        seconds = [sum(r.imports.values()) for r in self.records if r.imports]
        return median(seconds) if seconds else None

    @property
    def outcome(self) -> str:
        """The worst outcome, and why a run that ended ok is not ranked."""
        worst = self.worst
        if worst.outcome == "ok" and worst.gate.status in ("no-reference", "unscored"):
            return f"ok, not ranked ({worst.gate.status})"
        return worst.outcome

    @property
    def head_room(self) -> HeadRoom:
        """Head-room of the median wall time and of the highest peak."""
        budget = self.first.budget
        return HeadRoom(unused(budget.time_s, self.wall_s), unused(budget.memory_bytes, self.peak))


def rows(records: Iterable[Record]) -> list[RunGroup]:
    """Records by variant: ranked groups first, fastest first; then the others. The newest run of each repetition counts."""
    newest: dict[tuple[str, ...], dict[int, Record]] = defaultdict(dict)
    for r in sorted(records, key=lambda r: r.created):
        key = (r.engine_name, r.backend, r.precision, r.device, r.budget.name)
        newest[key][r.repeat] = r
    groups = [RunGroup(tuple(runs[i] for i in sorted(runs))) for runs in newest.values()]
    return sorted(groups, key=lambda group: (not group.ranked, group.wall_s))


def boards(records: Iterable[Record]) -> dict[comparable.Key, list[Record]]:
    """Timed runs whose times may be compared (suite/records/comparable.py), sorted by task and ascending scale."""
    by_key: dict[comparable.Key, list[Record]] = defaultdict(list)
    for r in records:
        if r.job == "predict" and not r.control:
            by_key[comparable.times(r)].append(r)
    return dict(sorted(by_key.items(), key=lambda item: (item[1][0].task, item[1][0].scale)))


def phase_names(records: Iterable[Record]) -> list[str]:
    """The phases of all runs in the order in which they ran, `score` last."""
    names = dict.fromkeys(phase.name for r in records for phase in r.phases)
    return sorted(names, key=lambda name: name == SCORE)


def phase_s(record: Record, name: str) -> float | None:
    """Wall seconds of a phase; None in a run that did not reach it."""
    seconds = [phase.wall_s for phase in record.phases if phase.name == name]
    return sum(seconds) if seconds else None
