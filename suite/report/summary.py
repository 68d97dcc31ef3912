"""The records in a few lines: for each task the plain run and the fastest run, which single change gains most, and what ran on a GPU."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from buzzer.engine import infer
from buzzer.errors import UsageError
from buzzer.suite import registry
from buzzer.suite.analysis import comparison
from buzzer.suite.analysis.statistics import LEAST_ROUNDS, SURE_ROUNDS, Ratio, paired
from buzzer.suite.records.repetitions import RunGroup, boards, rows
from buzzer.suite.records.schema import Record
from buzzer.suite.report.format import seconds_text
from buzzer.suite.words import counted

NAMES = {
    "pandas": "pandas", "polars": "Polars", "cudf": "cuDF", "polars-gpu": "Polars on cuDF", "torch_eager": "PyTorch",
    "torch_compile": "torch.compile", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT",
    "xgboost": "XGBoost", "forest": "C trees", "fused": "Triton kernels", "nvforest": "nvForest",
}  # fmt: skip


RANDOM_WEIGHTS = "random weights"


def name_of(plugin: str) -> str:
    """The usual name of an engine or of a backend: `onnxruntime+forest` -> `ONNX Runtime + C trees`."""
    return " + ".join(NAMES.get(part, part) for part in plugin.split("+"))


@dataclass(frozen=True)
class Gain:
    """How many times faster a run is than the plain run."""

    row: RunGroup
    ratio: Ratio
    is_noise: bool | None  # None if neither an interval nor A/A pairs tell

    @property
    def text(self) -> str:
        """The ratio with its interval, and with the number of rounds if they are few: `2.71× (1 round)`."""
        low, high, rounds = self.ratio.low, self.ratio.high, counted(self.ratio.pairs, "round")
        if low is None or high is None:
            return f"{times(self.ratio.value)} ({rounds})"
        few = f", {rounds}" if self.ratio.pairs < SURE_ROUNDS else ""
        return f"{times(self.ratio.value)} ({times(low)[:-1]} to {times(high)[:-1]}{few})"

    @property
    def verdict(self) -> str:
        """`text`, and whether the difference is noise."""
        return f"{self.text}, within noise" if self.is_noise else self.text


def times(ratio: float) -> str:
    """A ratio with three significant digits: 2.71×, 13.8×."""
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:,.1f}×"


@dataclass(frozen=True)
class TaskSummary:
    """The main board of a task: its plain run and what is faster."""

    ranked: list[RunGroup]  # its ranked runs, fastest first
    plain: RunGroup  # one of them
    pool: Sequence[Record]  # records that may hold A/A pairs

    @property
    def first(self) -> Record:
        """The plain run's first record, used for the facts that all records have in common."""
        return self.plain.first

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.first.task

    @property
    def best(self) -> RunGroup:
        """The fastest ranked run."""
        return self.ranked[0]

    @property
    def same_setting(self) -> list[RunGroup]:
        """The ranked runs that differ from the plain run only in engine and backend, fastest first."""
        return [row for row in self.ranked if setting(row) == setting(self.plain)]

    @cached_property
    def gain(self) -> Gain | None:
        """What the fastest run gains; None if it is the plain run."""
        return None if self.best is self.plain else self.gain_of(self.best)

    @cached_property
    def one_core(self) -> Gain | None:
        """What the fastest run gains within the plain run's budget and precision; None if it is the plain run."""
        return self._fastest(lambda row: True)

    @cached_property
    def engine(self) -> Gain | None:
        """What another engine gains with everything else as in the plain run."""
        return self._fastest(lambda row: row.first.backend == self.first.backend)

    @cached_property
    def backend(self) -> Gain | None:
        """What another backend gains with everything else as in the plain run."""
        return self._fastest(lambda row: row.first.engine_name == self.first.engine_name)

    @property
    def by(self) -> str:
        """How the fastest run differs from the plain run, in words."""
        r, plain = self.best.first, self.first
        changes = [
            name_of(r.engine_name) if r.engine_name != plain.engine_name else "",
            name_of(r.backend) if r.backend != plain.backend else "",
            r.precision if r.precision != plain.precision else "",
            "GPU" if r.device == "cuda" else "",
            cores_text(r) if r.device == "cpu" and comparison.cores(r) != comparison.cores(plain) else "",
        ]
        return ", ".join(filter(None, changes))

    def _fastest(self, keep: Callable[[RunGroup], bool]) -> Gain | None:
        others = (row for row in self.same_setting if row is not self.plain)
        row = next(filter(keep, others), None)
        return None if row is None else self.gain_of(row)

    def gain_of(self, row: RunGroup) -> Gain | None:
        """What a run gains over the plain run; None if they have no round in common."""
        return self._gain(self.plain, row)

    @property
    def alike(self) -> bool:
        """Whether another engine and another backend gain the same up to noise."""
        if self.engine is None or self.backend is None:
            return False
        between = self._gain(self.engine.row, self.backend.row)
        return between is not None and between.is_noise is True

    def _gain(self, before: RunGroup, after: RunGroup) -> Gain | None:
        ratio = paired(before.walls, after.walls)
        if ratio is None:
            return None
        level = comparison.noise(self.pool, after.first, ratio.pairs)
        return Gain(after, ratio, ratio.is_noise(level.band if level else None))


def setting(row: RunGroup) -> tuple[str, str, str]:
    """Budget, device and precision: runs that agree in these differ only in engine and backend."""
    return row.first.budget.name, row.first.device, row.first.precision


def cores_text(r: Record) -> str:
    """`1 core`, `2 cores`."""
    return counted(comparison.cores(r), "core")


def summaries(records: Iterable[Record]) -> list[TaskSummary]:
    """For each task its main board: the one with the most to tell, official files before generated ones, then the newest.

    Tasks without a ranked run of the reference engine and backend on one core are left out.
    """
    records = list(records)
    pool = noise_pool(records)
    best: dict[str, TaskSummary] = {}
    for group in boards(records).values():
        ranked = most_repeated([row for row in rows(group) if row.ranked])
        plain = plain_run(ranked)
        if plain is not None:
            found = TaskSummary(ranked, plain, pool)
            best[found.task] = max(best.get(found.task, found), found, key=_worth)
    return [summary for _, summary in sorted(best.items())]


def most_repeated(ranked: Sequence[RunGroup]) -> list[RunGroup]:
    """The runs without those that another one has in more rounds. Such two differ only in the memory and the time of their budgets."""
    most = Counter[tuple[object, ...]]()
    for row in ranked:
        most[_resources(row)] = max(most[_resources(row)], len(row.records))
    return [row for row in ranked if len(row.records) == most[_resources(row)]]


def _resources(row: RunGroup) -> tuple[object, ...]:
    r = row.first
    return r.engine_name, r.backend, r.precision, r.device, comparison.cores(r)


def noise_pool(records: Iterable[Record]) -> list[Record]:
    """The records of A/A pairs, from which the noise of a machine is computed. Few records have one, and each gain looks at all of them."""
    pairs = comparison.aa_pairs(r for r in records if r.outcome == "ok")
    return list({r.run_id: r for pair in pairs for r in pair}.values())


def _worth(s: TaskSummary) -> tuple[object, ...]:
    """Whether scoring is outside the wall time, whether gains have intervals, the size, the source of the data, the task's own parameters,
    the date."""
    r = s.first
    newest = max(x.created for row in s.ranked for x in row.records)
    sure = len(s.plain.records) >= LEAST_ROUNDS
    return r.scoring == "outside", sure, r.scale, r.data_source == "official", as_registered(r), newest


def as_registered(r: Record) -> bool:
    """Whether a run had the default parameters of its task in configs/."""
    task = registry.tasks().get(r.task)
    return task is not None and task.config_hash == r.config_hash


def plain_run(groups: Iterable[RunGroup]) -> RunGroup | None:
    """The run of the reference engine and backend on one core, as most competitors use; None if there is none."""
    for row in groups:
        r = row.first
        if r.gate.status == "reference" and r.budget.cores == 1 and r.device == "cpu":
            return row
    return None


# ---- sentences ---------------------------------------------------------------------------------------------------


def findings(found: Sequence[TaskSummary]) -> list[str]:
    """What was found, in two sentences; empty if no run is faster than a plain run."""
    return [sentence for sentence in (_example(found), _rule(found)) if sentence]


def _example(found: Sequence[TaskSummary]) -> str:
    """The gain on one core that saves most time, one with an interval before others: in a job of seconds, much of a gain is the start of the
    process. Runs are ranked only if their scores agree: it is the same score."""
    gains = [(s, s.one_core) for s in found if s.one_core is not None and s.one_core.is_noise is not True]
    if not gains:
        return ""
    s, gain = max(gains, key=lambda x: (x[1].ratio.low is not None, x[0].plain.wall_s - x[1].row.wall_s))
    before, after = seconds_text(s.plain.wall_s), seconds_text(gain.row.wall_s)
    weights = f" with {RANDOM_WEIGHTS}" if s.first.random_weights else ""
    return (
        f"Same core, same score: {s.task}{weights} takes {before} with {_stack(s.first)}"
        f" and {after} with {_stack(gain.row.first)}, {gain.text}."
    )


def _stack(r: Record) -> str:
    engine = [] if r.engine == registry.NO_ENGINE else [name_of(r.engine_name)]
    return " and ".join([*engine, name_of(r.backend)])


def _rule(found: Sequence[TaskSummary]) -> str:
    """The tasks by the single change that gains most on one core. A gain of too few rounds to know its noise is named apart."""
    gains: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for s in found:
        changes = [("engine", s.engine), ("backend", s.backend)]
        known = [(kind, g) for kind, g in changes if g is not None and g.ratio.value > 1 and not g.is_noise]
        kind, gain = max(known, key=lambda item: item[1].ratio.value, default=("", None))
        kind = "unsure" if gain is not None and gain.is_noise is None else kind
        if len(known) == 2 and s.alike:
            kind = "either"
        gains[kind].append((-gain.ratio.value, f"{s.task} {gain.text}") if gain else (0.0, s.task))
    texts = {kind: ", ".join(text for _, text in sorted(names)) for kind, names in gains.items()}
    sentences = {
        "backend": "Changing only the backend gains most for",
        "engine": "Changing only the engine gains most for",
        "either": "Changing only the backend or only the engine gains the same, up to noise, for",
        "": "No gain beyond noise for",
        "unsure": "Too few rounds to tell for",
    }
    if texts.keys() <= {"", "unsure"}:
        texts.pop("", None)
    return " ".join(f"{start} {texts[kind]}." for kind, start in sentences.items() if kind in texts)


def gpu_status(records: Iterable[Record]) -> str:
    """What has run on a GPU and what has not."""
    asked = [r for r in records if r.device == "cuda" and not r.published]
    ran = Counter(r.task for r in asked if r.outcome == "ok")
    if not ran:
        tried = f" {counted(len(asked), 'run')} asked for one that was not there." if asked else ""
        return f"All figures are from CPUs: nothing has run on a GPU yet.{tried}"
    models = sorted({gpu.name for r in asked if r.outcome == "ok" for gpu in r.machine.gpus})
    runs = ", ".join(f"{task} ({counted(number, 'run')})" for task, number in sorted(ran.items()))
    missing = sorted(set(registry.tasks()) - set(ran))
    which = f" ({', '.join(models)})" if models else ""
    return f"On a GPU{which}: {runs}. Not yet: {', '.join(missing)}."


@dataclass(frozen=True)
class System:
    """An engine and its backends over the tasks of the summaries."""

    name: str
    mean: float  # geometric mean of the time over the fastest time
    missing: int  # tasks without a run


# Engine, backend of networks, backend of boosted trees. A task without tables, networks or trees has "" there, which stands for each.
Parts = tuple[str, str, str]
SHIFT_S = 0.01  # added to both times, as ClickBench does, so that very short times do not decide


def parts_of(r: Record) -> Parts:
    """The engine and the backends of a run."""
    engine = "" if r.engine == registry.NO_ENGINE else r.engine_name
    kinds = task.kinds if (task := registry.tasks().get(r.task)) else [infer.NETWORKS]
    if kinds == [infer.TREES]:
        return engine, "", r.backend
    if infer.TREES in kinds:
        with suppress(UsageError):  # a plug-in's backend that is not installed here
            return engine, *infer.split_backend(r.backend)
    return engine, r.backend, ""


def stands_for(some: Parts, parts: Parts) -> bool:
    """Whether a task that has only some kinds of parts has these ones."""
    return all(mine in ("", other) for mine, other in zip(some, parts, strict=True))


def parts_of_systems(runs: Iterable[Parts]) -> list[Parts]:
    """The parts of all systems, those of most runs first. What stands for a larger system is none of its own."""
    counts = Counter(runs)
    largest = [x for x in counts if not any(x != other and stands_for(x, other) for other in counts)]
    total = {x: sum(n for some, n in counts.items() if stands_for(some, x)) for x in largest}
    return sorted(largest, key=lambda x: (-total[x], x))


def system_name(parts: Parts) -> str:
    """`pandas with PyTorch + XGBoost`."""
    backends = " + ".join(name_of(part) for part in parts[1:] if part)
    return f"{name_of(parts[0])} with {backends}" if parts[0] else backends


def overall(found: Sequence[TaskSummary]) -> list[System]:
    """Engines with their backends on one core, best first, by ClickBench's rule: the geometric mean of (10 ms + time) / (10 ms + fastest time).

    A task without a run counts with twice the largest ratio that any system has there.
    """
    from statistics import geometric_mean

    ratios = [r for r in map(_ratios, found) if len(r) > 1]
    systems = []
    for parts in parts_of_systems(some for r in ratios for some in r):
        own = [next((x for some, x in r.items() if stands_for(some, parts)), None) for r in ratios]
        filled = [2 * max(r.values()) if x is None else x for x, r in zip(own, ratios, strict=True)]
        systems.append(System(system_name(parts), geometric_mean(filled), sum(x is None for x in own)))
    return sorted(systems, key=lambda system: system.mean)


def _ratios(s: TaskSummary) -> dict[Parts, float]:
    """Time over the fastest time by parts, in the setting of the plain run."""
    walls = {parts_of(row.first): SHIFT_S + row.wall_s for row in s.same_setting}
    return {parts: wall / min(walls.values()) for parts, wall in walls.items()}


def ranking(found: Sequence[TaskSummary]) -> str:
    """The overall ranking in words; empty with fewer than two systems or two tasks."""
    tasks = sum(len(_ratios(s)) > 1 for s in found)
    systems = [s for s in overall(found) if 2 * s.missing <= tasks]
    if len(systems) < 2 or tasks < 2:
        return ""
    places = "; ".join(
        f"{s.name} {s.mean:.2f}" + (f" ({counted(s.missing, 'task')} missing)" if s.missing else "")
        for s in systems
    )
    return (
        f"Overall on one core, geometric mean over {counted(tasks, 'task')} of the time over the fastest time, as ClickBench ranks"
        f" (a missing task counts with twice its largest ratio): {places}. Systems that miss more than half of the tasks are left out."
    )
