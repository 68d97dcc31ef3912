"""Prepares the data of tasks, and turns a plan into steps for the executor."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from buzzer import caches
from buzzer.errors import UsageError
from buzzer.models.api.context import Data
from buzzer.suite.records.schema import Record
from buzzer.suite.run import feasible, runner
from buzzer.suite.run.executor import Executor, Observer, Step, is_record_of
from buzzer.suite.run.plan import Planned, Run, RunPlan, TaskSelection
from buzzer.suite.run.supervise import PhaseCallback
from buzzer.suite.run.worker import load_entry


class TaskWorkload:
    """Carries out the runs of one selection of a task on prepared data. Its fits are in the cache."""

    fit_name = "fit"
    keeps_fit = True

    def __init__(
        self, data: Data, out: Path, resume: bool = False, tell: Callable[[str], None] = runner.silent
    ) -> None:
        self.data, self.out, self.resume, self.tell = data, out, resume, tell

    def fit(self, run: Run, watch: PhaseCallback) -> Record | None:
        """Train, unless the cache has this fit. Returns the record of the training, or None."""
        return runner.fit(run, self.data, caches.folder(), watch)

    def resolved(self, run: Run) -> Run:
        """The run as it is: its parameters do not depend on the fit."""
        return run

    def execute(self, run: Run, others: Sequence[Record], watch: PhaseCallback) -> Record:
        """Do a timed run with the fit and return its record."""
        return runner.predict(
            run, self.data, caches.folder(), self.out, others, watch, self.resume, self.tell
        )

    def outcome_without(self, fit: Record) -> str:
        """`unsupported` if the fit is unsupported, else `error`."""
        return "unsupported" if fit.outcome == "unsupported" else "error"

    def is_done(self, run: Run, past: Record) -> bool:
        """Whether a record is of this run on this data, by the fit that it would use now."""
        return is_record_of(run, self.data, past)

    def recorded(self, record: Record) -> None:
        """Do nothing: the run's files are already in their final folder."""


def execute(plan: RunPlan, executor: Executor) -> Iterator[Record]:
    """Prepare all data first, so that bad input is reported before any run, then run. Yields each record as soon as it is written."""
    for warning in plan.warnings:
        executor.observer.message(warning, "warning")
    data = [prepare(selection, plan.data, executor.observer) for selection in plan.selections]
    planned = steps(plan, data, executor.out, executor.resume, executor.observer.message)
    yield from executor.run(planned, plan.give_up)


def prepare(
    selection: TaskSelection, source: Path | None, observer: Observer, cache: Path | None = None
) -> Data:
    """A task's input data: the checked official files in `source`, or generated data from the cache.

    Raises DataError, and UsageError for a `train_scale` that the task does not have, and if data that are not given lack the task's `truth`.
    """
    task, folder = load_entry(selection.task.entry, selection.task.name), (cache or caches.folder()) / "data"
    options = sample_option(selection.task.name, task.prepare, selection.train_scale)
    data = task.prepare(source, folder, selection.scale, selection.seed, observer.preparing, **options)
    config = selection.task
    if source is None and config.truth and not config.truths(data.folder):
        message = f"{config.name}: its data have no {config.truth}, the `truth` of its descriptor"
        raise UsageError(message, f"they are in {data.folder}")
    return data


def sample_option(name: str, prepare: Callable[..., Data], train_scale: float | None) -> dict[str, float]:
    """The keywords for a task's `prepare`: its `train_scale`, if one is requested. Raises UsageError if the task has none."""
    if train_scale is None:
        return {}
    if "train_scale" not in inspect.signature(prepare).parameters:
        raise UsageError(f"{name} has no training part with a separate scale", "leave out --train-scale")
    return {"train_scale": train_scale}


def steps(
    plan: RunPlan,
    data: Sequence[Data],
    out: Path,
    resume: bool = False,
    tell: Callable[[str], None] = runner.silent,
) -> list[Step]:
    """The plan's runs, each with the data of its selection and their scale. resume: whether interrupted runs go on; `tell` gets a line
    about each."""
    workloads = [TaskWorkload(prepared, out, resume, tell) for prepared in data]
    return [
        Step(sized(item.run, data[number]), workloads[number], item.problem)
        for number, item in checked_runs(plan)
    ]


def sized(run: Run, data: Data) -> Run:
    """The run with the scale of its data, which for given files is not that of the request."""
    return replace(run, scale=data.scale, train_scale=data.train_scale)


def checked_runs(plan: RunPlan) -> list[tuple[int, Planned]]:
    """The runs of a plan with the indices of their selections, checked before anything is trained. A fit of which no run can start here
    is left out."""
    every = [
        (number, Planned(run, None if run.job == "fit" else feasible.problem(run)))
        for number, run in plan.runs
    ]
    needed = {number for number, item in every if item.run.job != "fit" and item.problem is None}
    return [(number, item) for number, item in every if item.run.job != "fit" or number in needed]
