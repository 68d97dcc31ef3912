"""The first screen of the report page: which engine, whether each job stays within its budget, and CPU against GPU."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from buzzer.suite import registry
from buzzer.suite.analysis import comparison, statistics
from buzzer.suite.analysis.comparison import Variant
from buzzer.suite.analysis.statistics import Projection
from buzzer.suite.records import machine
from buzzer.suite.records.repetitions import RunGroup, boards, rows
from buzzer.suite.records.schema import Record
from buzzer.suite.report import charts, notes, summary
from buzzer.suite.report.charts import Axis
from buzzer.suite.report.format import clock_text, seconds_text
from buzzer.suite.report.summary import Gain, Parts, TaskSummary

STEPS = 4  # shades of the heat map on each side
STEP = 1.5  # ratio from one shade to the next


@dataclass(frozen=True)
class Answer:
    """What the records say, in sentences."""

    findings: list[str]
    ranking: str
    gpu: str


def answer(found: Sequence[TaskSummary], records: Sequence[Record]) -> Answer:
    """The sentences of the first screen."""
    return Answer(summary.findings(found), summary.ranking(found), summary.gpu_status(records))


@dataclass(frozen=True)
class Places:
    """The machines of the tasks: a caption names that of most tasks, and a line names another one."""

    found: Sequence[TaskSummary]

    @cached_property
    def usual(self) -> str:
        """The machine of most tasks; empty without tasks."""
        machines = Counter(machine.describe(s.first.machine) for s in self.found)
        return max(machines, key=lambda name: machines[name], default="")

    def elsewhere(self, s: TaskSummary) -> str:
        """A task's machine, if it is not the usual one."""
        own = machine.describe(s.first.machine)
        return "" if own == self.usual else own

    @property
    def where(self) -> str:
        """A sentence that names the usual machine."""
        others = any(map(self.elsewhere, self.found))
        return f"Measured on {self.usual}{', unless a line names another machine' if others else ''}."


# ---- A: each task against its budget -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Race:
    """A task's plain run and its fastest run, and the projection of its full job where it was not measured."""

    summary: TaskSummary
    projected: "Projected | None"

    @property
    def filters(self) -> dict[str, str]:
        """The values by which it is filtered."""
        return task_filters(self.summary.first)

    @property
    def limit_s(self) -> float | None:
        """The time limit of the plain run."""
        return self.summary.first.budget.time_s

    @property
    def text(self) -> str:
        """The times in words."""
        plain, best = self.summary.plain.wall_s, self.summary.best.wall_s
        return seconds_text(plain) if plain == best else f"{seconds_text(plain)} to {seconds_text(best)}"

    @property
    def label(self) -> str:
        """Everything that the bar shows, in words."""
        s, limit = self.summary, self.limit_s
        parts = [f"{s.task}, {s.first.rows:,} rows: plain {seconds_text(s.plain.wall_s)}"]
        parts += [f"fastest {seconds_text(s.best.wall_s)} by {s.by}"] if s.by else []
        parts += [f"buzzer at {clock_text(limit)}"] if limit else []
        return ", ".join([*parts, *([self.projected.text] if self.projected else [])])


@dataclass(frozen=True)
class Projected:
    """A projection of the full job with bounds."""

    variant: Variant
    wall: Projection

    @property
    def text(self) -> str:
        """The projection in words."""
        low, high = self.wall.low or 0.0, self.wall.high or 0.0
        return f"full job projected: {clock_text(low)} to {clock_text(high)} ({self.variant})"


@dataclass(frozen=True)
class Races:
    """All tasks on one axis."""

    lines: list[Race]

    @property
    def on_gpu(self) -> bool:
        """Whether a fastest run is on a GPU."""
        return any(race.summary.best.first.device == "cuda" for race in self.lines)

    @property
    def projected(self) -> bool:
        """Whether a full job is projected."""
        return any(race.projected for race in self.lines)

    @property
    def axis(self) -> Axis:
        """A logarithmic axis of all times and limits."""
        times = [
            t
            for race in self.lines
            for t in (race.summary.plain.wall_s, race.summary.best.wall_s, race.limit_s or 0.0)
        ]
        bounds = [
            b for race in self.lines if (p := race.projected) for b in (p.wall.low or 0.0, p.wall.high or 0.0)
        ]
        return charts.time_axis([*times, *bounds], "wall time")


def races(found: Sequence[TaskSummary], records: Sequence[Record]) -> Races:
    """A line for each task."""
    return Races([Race(s, projection(s.task, records)) for s in found])


def projection(task: str, records: Sequence[Record]) -> Projected | None:
    """The full job on one core of the fastest variant, from the newest sizes that give bounds; None if the full size was measured."""
    config = registry.tasks().get(task)
    found: list[tuple[float, Projected]] = []
    for group in comparison.groups(records, task) if config else []:
        if 1.0 in group.cells:
            return None
        newest = max(r.created for r in group.records).timestamp()
        for variant in {v for row in group.cells.values() for v in row}:
            series = group.series(variant)
            first = next(row[variant] for row in group.cells.values() if variant in row).first
            if first.budget.cores == 1 and len(series) >= 2:
                wall = statistics.project(series, 1.0)
                if wall.low is not None and wall.high is not None:
                    found.append((newest, Projected(variant, wall)))
    last = max((newest for newest, _ in found), default=0.0)
    return min((p for newest, p in found if newest == last), key=lambda p: p.wall.value, default=None)


def task_filters(r: Record) -> dict[str, str]:
    """The values by which a line about a whole task is filtered."""
    return {"task": r.task, "machine": machine.describe(r.machine)}


# ---- B: tasks x systems ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeatCell:
    """A system on a task. `shade` is a CSS class: plain, noise, unsure, none, up1 to up4, down1 to down4."""

    text: str
    shade: str
    title: str


@dataclass(frozen=True)
class HeatMap:
    """How many times faster than the plain run each engine and backend is, in the plain run's setting."""

    systems: list[Parts]
    found: Sequence[TaskSummary]

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [summary.system_name(system) for system in self.systems]

    @property
    def lines(self) -> list[tuple[TaskSummary, dict[str, str], list[HeatCell]]]:
        """For each task its filters and its cells."""
        return [(s, task_filters(s.first), [_cell(s, system) for system in self.systems]) for s in self.found]


def heat_map(found: Sequence[TaskSummary]) -> HeatMap:
    """The systems by the number of tasks that have them."""
    runs = (summary.parts_of(row.first) for s in found for row in s.same_setting)
    return HeatMap(summary.parts_of_systems(runs), found)


def _cell(s: TaskSummary, system: Parts) -> HeatCell:
    own = (row for row in s.same_setting if summary.stands_for(summary.parts_of(row.first), system))
    row = next(own, None)
    if row is None:
        return HeatCell("", "none", "not run")
    seconds = seconds_text(row.wall_s)
    if row is s.plain:
        return HeatCell("1", "plain", f"the plain run, {seconds}")
    gain = s.gain_of(row)
    if gain is None:
        return HeatCell("", "none", "no round in common with the plain run")
    sign = " ?" if gain.is_noise is None else " ≈" if gain.is_noise else ""
    text = summary.times(gain.ratio.value) + sign
    return HeatCell(text, shade(gain), f"{gain.verdict}, {seconds}")


def shade(gain: Gain) -> str:
    """The CSS class of a ratio."""
    if gain.is_noise is None:
        return "unsure"
    if gain.is_noise:
        return "noise"
    steps = math.log(gain.ratio.value) / math.log(STEP)
    number = min(STEPS, max(1, math.ceil(abs(steps))))
    return f"{'up' if steps >= 0 else 'down'}{number}"


# ---- C: CPU against GPU ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dumbbell:
    """The fastest run on the CPU and the fastest on the GPU of one board."""

    cpu: RunGroup
    gpu: RunGroup

    @property
    def filters(self) -> dict[str, str]:
        """The values by which it is filtered."""
        return task_filters(self.gpu.first)

    @property
    def machine(self) -> str:
        """The machine of both."""
        return machine.describe(self.gpu.first.machine)

    @property
    def rounds(self) -> int:
        """How often both were repeated."""
        return min(len(self.cpu.records), len(self.gpu.records))

    @property
    def label(self) -> str:
        """Its task and size, the times, and their ratio."""
        r = self.gpu.first
        changed = f", {text}" if (text := notes.changes_of(r)) else ""
        cores, ratio = summary.cores_text(self.cpu.first), summary.times(self.cpu.wall_s / self.gpu.wall_s)
        sides = f"CPU ({cores}) {seconds_text(self.cpu.wall_s)}, GPU {seconds_text(self.gpu.wall_s)}"
        return f"{r.task}, {r.rows:,} rows{changed}: {sides}, {ratio}"


@dataclass(frozen=True)
class Dumbbells:
    """CPU against GPU on one axis.

    disturbed: boards whose pair is left out, because other processes used the cores of a run.
    """

    lines: list[Dumbbell]
    disturbed: list[str]

    @property
    def left_out(self) -> str:
        """A sentence that names the pairs that are left out; empty if there are none."""
        if not self.disturbed:
            return ""
        return f"Left out, because other processes used the cores of a run: {'; '.join(self.disturbed)}."

    @property
    def axis(self) -> Axis:
        """A logarithmic axis of all times."""
        return charts.time_axis([w for d in self.lines for w in (d.cpu.wall_s, d.gpu.wall_s)], "wall time")


def dumbbells(records: Iterable[Record]) -> Dumbbells:
    """For each task the largest board with ranked runs on both devices that other processes did not disturb."""
    best, disturbed = dict[str, Dumbbell](), list[str]()
    for group in boards(records).values():  # by ascending scale
        ranked = [row for row in rows(group) if row.ranked]
        fastest = {
            device: next((x for x in ranked if x.first.device == device), None) for device in ("cpu", "cuda")
        }
        if (cpu := fastest["cpu"]) and (gpu := fastest["cuda"]):
            if cpu.disturbed or gpu.disturbed:
                disturbed.append(Dumbbell(cpu, gpu).label)
            else:
                best[gpu.first.task] = Dumbbell(cpu, gpu)
    return Dumbbells([pair for _, pair in sorted(best.items())], sorted(disturbed))
