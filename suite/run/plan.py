"""Plans runs: every combination of engine, backend, precision, budget and round of each selected task, in order."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple, get_args

from buzzer.engine import frames, infer
from buzzer.errors import BuzzerError, UnsupportedError, unknown_name
from buzzer.models.api.context import Data
from buzzer.suite import registry
from buzzer.suite.budget import UNLIMITED, Budget
from buzzer.suite.records.schema import SCHEMA_MINOR, Outcome, Record
from buzzer.suite.registry import NO_ENGINE, TaskConfig

FAILURES = frozenset(get_args(Outcome)) - {"ok"}


@dataclass(frozen=True)
class Run:
    """One planned run."""

    task: TaskConfig
    job: str  # "fit" or "predict"
    engine: str
    backend: str
    precision: str
    device: str
    budget: Budget
    scale: float
    seed: int
    train_scale: float | None = None  # of the training rows, if they are a sample of those of `scale`
    repeat: int = 0
    control: bool = False  # the second run of an A/A pair
    workers: int = 0  # Dask workers; 0 = one process
    scheduler: str = ""  # address of a running Dask cluster
    fitted_on: tuple[str, str] = ("cpu", "")  # device and cluster of the training of its fit
    expected_s: float | None = field(default=None, compare=False)  # seconds of past runs like it

    @property
    def cluster(self) -> str:
        """The cluster, as in a record: the scheduler's address, or the number of workers; empty for one process."""
        return self.scheduler or (f"{self.workers} workers" if self.workers else "")

    @property
    def label(self) -> str:
        """The name of the run in messages: task, job, engine, backend, precision."""
        engine = "" if self.engine == NO_ENGINE else f" {self.engine}"
        return f"{self.task.name} {self.job}{engine} {self.backend} {self.precision}"

    @property
    def title(self) -> str:
        """The label, and what tells the run from others of the plan: budget, scale, round, A/A."""
        facts = [] if self.job == "bench" else [f"scale {self.scale:g}"]
        if self.job != "fit":
            facts = [self.budget.name, *facts, f"round {self.repeat + 1}"]
        return f"{self.label} ({', '.join([*facts, *(['A/A'] if self.control else [])])})"

    def matches(self, record: Record, data: Data) -> bool:
        """Whether `record` is of this run on this data, with any fit."""
        return (
            record.schema_minor == SCHEMA_MINOR
            and record.task == self.task.name
            and record.job == self.job
            and record.engine == self.engine
            and record.backend == self.backend
            and record.precision == self.precision
            and record.device == self.device
            and record.budget.name == self.budget.name
            and record.seed == self.seed
            and record.repeat == self.repeat
            and record.control == self.control
            and record.cluster == self.cluster
            and record.config_hash == self.task.config_hash
            and record.train_scale == data.train_scale
            and record.data_fingerprint == data.fingerprint
        )


@dataclass(frozen=True)
class Planned:
    """A planned run, and the reason if it cannot be run."""

    run: Run
    problem: BuzzerError | None = None


def choose(
    kind: str, requested: Sequence[str] | None, known: Iterable[str], offered: Sequence[str]
) -> list[str]:
    """The names to run: those that are `requested` and that the task offers; all `offered` names for no request or `all`.

    Raises UsageError for a requested name that is not in `known`.
    """
    if not requested or list(requested) == ["all"]:
        return list(offered)
    for name in requested:
        if name not in set(known):
            raise unknown_name(kind, name, known)
    return [name for name in offered if name in requested]


def engine_works(name: str) -> bool:
    """Whether this machine can run a feature engine."""
    if name == NO_ENGINE:
        return True
    try:
        frames.check(name)
    except UnsupportedError:
        return False
    return True


def task_engines(task: TaskConfig, requested: Sequence[str] | None) -> list[str]:
    """Engines to run a task on: the requested ones, or else those that work on this machine.

    A requested engine that cannot run here is kept: its record says `unsupported`. A task without feature frames has the one engine
    `none`, whatever was requested.
    """
    if task.engines == [NO_ENGINE]:
        return [NO_ENGINE]
    chosen = choose("engine", requested, registry.engines(), task.engines)
    return chosen if requested else [e for e in chosen if engine_works(e)]


def task_backends(task: TaskConfig, requested: Sequence[str] | None) -> list[str]:
    """Backends to run a task on: the requested ones, or else those that are installed."""
    single = registry.backends()
    pairs = [name for name in requested or () if set(infer.parts(name)) <= set(single)]
    known = [*single, *registry.backend_pairs(), *pairs]
    chosen = choose("backend", requested, known, task.backends)
    return chosen if requested else [b for b in chosen if infer.installed(b)]


@dataclass(frozen=True)
class TaskSelection:
    """The runs that are selected of one task, with every name checked; None = the default."""

    task: TaskConfig
    engines: Sequence[str] | None
    backends: Sequence[str] | None
    precisions: Sequence[str]
    device: str | None
    budgets: Sequence[Budget]
    scale: float
    seed: int
    repeat: int
    workers: int = 0
    scheduler: str = ""
    train_scale: float | None = None


class PlannedRun(NamedTuple):
    """A run, and the index of the selection in the plan that it belongs to."""

    selection: int
    run: Run


@dataclass(frozen=True)
class RunPlan:
    """The runs of several selections, including the fits, in order."""

    selections: tuple[TaskSelection, ...]
    runs: tuple[PlannedRun, ...]
    give_up: frozenset[str] = frozenset()  # outcomes after which a variant is not run again in later rounds
    data: Path | None = None  # folder of the official files; None = generated data
    warnings: tuple[str, ...] = ()  # budgets that this machine cannot provide

    @property
    def timed(self) -> list[Run]:
        """The timed runs: all runs but the fits."""
        return [run for _, run in self.runs if run.job != "fit"]


def task_by_task(selections: Sequence[TaskSelection]) -> RunPlan:
    """One selection after the other: its fit, then its timed runs."""
    runs = [
        PlannedRun(number, run)
        for number, selection in enumerate(selections)
        for run in (fit_run(selection), *predict_runs(selection))
    ]
    return RunPlan(tuple(selections), tuple(runs))


def interleaved(selections: Sequence[TaskSelection], seed: int) -> RunPlan:
    """All fits first. Then each round runs every variant of every selection once, and the first variant twice as an A/A pair.

    The first round is in order, because the gate needs the reference first. The other rounds are shuffled, so that no variant
    always follows the same one. A variant that has failed once is not run again.
    """
    shuffle = random.Random(seed)
    runs = [PlannedRun(number, fit_run(selection)) for number, selection in enumerate(selections)]
    variants = [predict_runs(replace(selection, repeat=1)) for selection in selections]
    for repeat in range(max((selection.repeat for selection in selections), default=0)):
        turn = []
        for number, firsts in enumerate(variants):
            again = [replace(run, repeat=repeat) for run in firsts]
            turn += [PlannedRun(number, run) for run in again]
            turn += [PlannedRun(number, replace(run, control=True)) for run in again[:1]]
        if repeat:
            shuffle.shuffle(turn)
        runs += turn
    return RunPlan(tuple(selections), tuple(runs), give_up=FAILURES)


def predict_runs(selection: TaskSelection) -> list[Run]:
    """The timed runs of a selection, the reference first. Repetitions are the outer loop, so that slow drift affects all variants alike."""
    task = selection.task
    variants = list(product(task_engines(task, selection.engines), task_backends(task, selection.backends)))
    reference = (task.reference.engine, task.reference.backend)
    variants.sort(key=lambda variant: variant != reference)
    fitted_on = fit_run(selection).fitted_on
    return [
        Run(
            task=task,
            job="predict",
            engine=engine,
            backend=backend,
            precision=precision,
            device=device_of(engine, selection.device),
            budget=budget,
            scale=selection.scale,
            seed=selection.seed,
            train_scale=selection.train_scale,
            repeat=repeat,
            workers=selection.workers,
            scheduler=selection.scheduler,
            fitted_on=fitted_on,
        )
        for repeat in range(selection.repeat)
        for (engine, backend), precision, budget in product(variants, selection.precisions, selection.budgets)
    ]


def device_of(engine: str, requested: str | None) -> str:
    """The requested device; by default `cuda` for an engine whose frames are on a GPU, else `cpu`."""
    return requested or ("cuda" if frames.on_gpu(engine) else "cpu")


def fit_run(selection: TaskSelection) -> Run:
    """The fit that all timed runs of a selection use: on the whole machine, without limits.

    It runs on the CPU, unless the selection names a device, so that it can be made earlier on a machine without a GPU. With
    --device cuda and a cluster, it runs on that cluster.
    """
    task = selection.task
    engine = "polars" if "polars" in task.engines else task.engines[0]
    device, workers, scheduler = selection.device or "cpu", 0, ""
    if device == "cuda" and (selection.workers or selection.scheduler):
        engine = next(filter(frames.on_cluster, task.engines), engine)
        workers, scheduler = selection.workers, selection.scheduler
    run = Run(
        task=task,
        job="fit",
        engine=engine,
        backend=task.reference.backend,
        precision="fp32",
        device=device,
        budget=UNLIMITED,
        scale=selection.scale,
        seed=selection.seed,
        train_scale=selection.train_scale,
        workers=workers,
        scheduler=scheduler,
    )
    return replace(run, fitted_on=(run.device, run.cluster))


def worst_case_s(runs: Iterable[Run]) -> float:
    """Wall time in seconds if every run used its whole budget; infinite if a budget has no time limit."""
    return sum(r.budget.time_s if r.budget.time_s is not None else float("inf") for r in runs)
