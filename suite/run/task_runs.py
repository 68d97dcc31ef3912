"""Runs of tasks: their data, fits and timed runs, as steps for the executor."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from buzzer import caches
from buzzer.models.api.context import Data
from buzzer.suite.records.schema import Record
from buzzer.suite.run import runner
from buzzer.suite.run.executor import Executor, Observer, Step
from buzzer.suite.run.plan import Run, RunPlan, TaskSelection
from buzzer.suite.run.supervise import PhaseCallback
from buzzer.suite.run.worker import load_entry


class TaskWorkload:
    """The runs of one selection of a task on prepared data, with fits in the cache."""

    fit_name = "fit"
    keeps_fit = True

    def __init__(self, data: Data, out: Path) -> None:
        self.data, self.out = data, out

    def fit(self, run: Run, watch: PhaseCallback) -> Record | None:
        """Train, unless the cache has this fit."""
        return runner.fit(run, self.data, caches.folder(), watch)

    def execute(self, run: Run, others: Sequence[Record], watch: PhaseCallback) -> Record:
        """The timed run of the fit."""
        return runner.predict(run, self.data, caches.folder(), self.out, others, watch)

    def outcome_without(self, fit: Record) -> str:
        """`unsupported` where the fit is that, else `error`."""
        return "unsupported" if fit.outcome == "unsupported" else "error"

    def recorded(self, record: Record) -> None:
        """Nothing is left to do: the run's files are in their place."""


def execute(plan: RunPlan, executor: Executor) -> Iterator[Record]:
    """Prepare all data first, so that bad input ends it before any timing, then run; records as they are made."""
    for warning in plan.warnings:
        executor.observer.message(warning, "warning")
    data = [prepare(selection, plan.data, executor.observer) for selection in plan.selections]
    yield from executor.run(steps(plan, data, executor.out), plan.give_up)


def prepare(
    selection: TaskSelection, source: Path | None, observer: Observer, cache: Path | None = None
) -> Data:
    """A task's input data: the official files of `source`, checked, or generated ones from the cache. Raises DataError."""
    task, folder = load_entry(selection.task.entry), (cache or caches.folder()) / "data"
    return task.prepare(source, folder, selection.scale, selection.seed, observer.preparing)


def steps(plan: RunPlan, data: Sequence[Data], out: Path) -> list[Step]:
    """The plan's runs, each with the data of its selection."""
    workloads = [TaskWorkload(prepared, out) for prepared in data]
    return [Step(run, workloads[number]) for number, run in plan.runs]
