"""The run plan: a list of plain records, made by crossing what was asked for; selection is a chain of filters."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from buzzer.engine import frames, infer
from buzzer.errors import UnsupportedError, unknown_name
from buzzer.models.api.context import Data
from buzzer.suite import registry
from buzzer.suite.budget import UNLIMITED, Budget
from buzzer.suite.records.record import SCHEMA_MINOR, Record
from buzzer.suite.registry import GPU_ENGINES, NO_ENGINE, TaskConfig
from buzzer.suite.run import fits


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
        engine = "" if self.engine == NO_ENGINE else f" {self.engine}"
        return f"{self.task.name} {self.job}{engine} {self.backend} {self.precision}"

    def matches(self, record: Record, data: Data) -> bool:
        """Whether `record` is a run of this very plan item, by the fit that it would use now."""
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
            and record.fit_id == fits.fit_id(self, data)
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
class Choice:
    """What was asked for one task; None = the default."""

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


def predict_runs(choice: Choice) -> list[Run]:
    """The timed runs: repetitions outermost (so that slow drift of the machine hits all alike), the reference first."""
    task = choice.task
    variants = list(product(task_engines(task, choice.engines), task_backends(task, choice.backends)))
    reference = (task.reference.engine, task.reference.backend)
    variants.sort(key=lambda v: v != reference)
    fitted_on = fit_run(choice).fitted_on
    return [
        Run(
            *(
                task,
                "predict",
                e,
                b,
                p,
                device_of(e, choice.device),
                budget,
                choice.scale,
                choice.seed,
                repeat,
            ),
            workers=choice.workers,
            scheduler=choice.scheduler,
            fitted_on=fitted_on,
        )
        for repeat in range(choice.repeat)
        for (e, b), p, budget in product(variants, choice.precisions, choice.budgets)
    ]


def device_of(engine: str, asked: str | None) -> str:
    """GPU engines keep their features on the device; else the CPU unless asked otherwise."""
    return asked or ("cuda" if engine in GPU_ENGINES else "cpu")


def fit_run(choice: Choice) -> Run:
    """The training that serves all timed runs of a choice: on the whole machine, without a limit; on a cluster of GPUs where one is
    asked for with --device cuda. Runs on a GPU use a fit of the CPU unless --device cuda is given: it can be made before, elsewhere."""
    task = choice.task
    engine = "polars" if "polars" in task.engines else task.engines[0]
    device, workers, scheduler = choice.device or "cpu", 0, ""
    if device == "cuda" and (choice.workers or choice.scheduler):
        engine, workers, scheduler = "polars-gpu", choice.workers, choice.scheduler
    what = (task, "fit", engine, task.reference.backend, "fp32", device, UNLIMITED, choice.scale, choice.seed)
    run = Run(*what, workers=workers, scheduler=scheduler)
    return replace(run, fitted_on=(run.device, run.cluster))


def worst_case_s(runs: Iterable[Run]) -> float:
    """Wall time if every run used up its budget; infinite with an unlimited one."""
    return sum(r.budget.time_s if r.budget.time_s is not None else float("inf") for r in runs)
