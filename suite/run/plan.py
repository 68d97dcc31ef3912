"""The plan of runs: engines, backends, precisions, budgets and rounds of each selected task, crossed and in order."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple, get_args

from buzzer.engine import frames, infer
from buzzer.errors import UnsupportedError, unknown_name
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
    repeat: int = 0
    control: bool = False  # the second run of an A/A pair
    workers: int = 0  # Dask workers; 0 = one process
    scheduler: str = ""  # of a running Dask cluster
    fitted_on: tuple[str, str] = ("cpu", "")  # device and cluster that train the fit which it makes or uses

    @property
    def cluster(self) -> str:
        """As records have it."""
        return self.scheduler or (f"{self.workers} workers" if self.workers else "")

    @property
    def label(self) -> str:
        """As messages name it: task, job, engine, backend, precision."""
        engine = "" if self.engine == NO_ENGINE else f" {self.engine}"
        return f"{self.task.name} {self.job}{engine} {self.backend} {self.precision}"

    def matches(self, record: Record, data: Data) -> bool:
        """Whether `record` is a run of this very plan item on this data, by whatever fit."""
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
            and record.data_fingerprint == data.fingerprint
        )


def choose(kind: str, asked: Sequence[str] | None, known: Iterable[str], offered: Sequence[str]) -> list[str]:
    """The names to run: `asked` (checked against all `known`, then kept where the task has them), or `offered`.

    `all` stands for every name the task has.
    """
    if not asked or list(asked) == ["all"]:
        return list(offered)
    for name in asked:
        if name not in set(known):
            raise unknown_name(kind, name, known)
    return [name for name in offered if name in asked]


def engine_works(name: str) -> bool:
    """Whether this machine can run a feature engine."""
    if name == NO_ENGINE:
        return True
    try:
        frames.check(name)
    except UnsupportedError:
        return False
    return True


def task_engines(task: TaskConfig, asked: Sequence[str] | None) -> list[str]:
    """Engines of a task: those asked for (even if they cannot run: that is a result), else those that work here.

    A task without feature frames has the one engine `none`, whatever was asked for.
    """
    if task.engines == [NO_ENGINE]:
        return [NO_ENGINE]
    chosen = choose("engine", asked, registry.engines(), task.engines)
    return chosen if asked else [e for e in chosen if engine_works(e)]


def task_backends(task: TaskConfig, asked: Sequence[str] | None) -> list[str]:
    """Backends of a task, as `task_engines`."""
    chosen = choose("backend", asked, registry.backends(), task.backends)
    return chosen if asked else [b for b in chosen if infer.installed(b)]


@dataclass(frozen=True)
class TaskSelection:
    """What is to run of one task, with every name checked; None = the default."""

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


class PlannedRun(NamedTuple):
    """A run, and which of the plan's selections it belongs to."""

    selection: int
    run: Run


@dataclass(frozen=True)
class RunPlan:
    """The runs of several selections, fits included, in the order in which they are done."""

    selections: tuple[TaskSelection, ...]
    runs: tuple[PlannedRun, ...]
    give_up: frozenset[str] = frozenset()  # outcomes after which a variant is not run again in later rounds
    data: Path | None = None  # folder of the official files; None = generated data
    warnings: tuple[str, ...] = ()  # what this machine has less than a budget

    @property
    def timed(self) -> list[Run]:
        """The runs that are measured: all but the fits."""
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
    """All fits, then every variant of every selection once a round, and the first variant of each twice: an A/A pair.

    The first round goes in order, since the gate needs the reference first; the others are shuffled, so that no variant
    always has the same neighbour. A variant that has failed once is not run again.
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
    """The timed runs: repetitions outermost (so that slow drift of the machine hits all alike), the reference first."""
    task, asked = selection.task, selection
    variants = list(product(task_engines(task, asked.engines), task_backends(task, asked.backends)))
    reference = (task.reference.engine, task.reference.backend)
    variants.sort(key=lambda variant: variant != reference)
    fitted_on = fit_run(asked).fitted_on
    return [
        Run(
            task=task,
            job="predict",
            engine=engine,
            backend=backend,
            precision=precision,
            device=device_of(engine, asked.device),
            budget=budget,
            scale=asked.scale,
            seed=asked.seed,
            repeat=repeat,
            workers=asked.workers,
            scheduler=asked.scheduler,
            fitted_on=fitted_on,
        )
        for repeat in range(asked.repeat)
        for (engine, backend), precision, budget in product(variants, asked.precisions, asked.budgets)
    ]


def device_of(engine: str, asked: str | None) -> str:
    """GPU engines keep their features on the device; the others run on the CPU unless asked otherwise."""
    return asked or ("cuda" if frames.on_gpu(engine) else "cpu")


def fit_run(selection: TaskSelection) -> Run:
    """The training that serves all timed runs of a selection: on the whole machine, without a limit; on a cluster of GPUs where one
    is asked for with --device cuda. Runs on a GPU use a fit of the CPU unless --device cuda is given: it can be made before, elsewhere."""
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
        workers=workers,
        scheduler=scheduler,
    )
    return replace(run, fitted_on=(run.device, run.cluster))


def worst_case_s(runs: Iterable[Run]) -> float:
    """Wall time in seconds if every run used up its budget; infinite with an unlimited one."""
    return sum(r.budget.time_s if r.budget.time_s is not None else float("inf") for r in runs)
