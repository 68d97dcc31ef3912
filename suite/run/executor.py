"""Runs steps one after the other and writes a record for each: one set of rules for every verb.

- A record is written the moment its run ends. One that its folder does not take is kept in the cache, or shown, and DataError says where.
- A run that the user stops has a record (`runner.interrupted`), and is the last one.
- A timed run whose fit failed is not started; its record says why.
- With `resume`, a run that has an `ok` record in the folder is not done again, and a fit is made only for runs that are done.
- A variant that ended in one of `give_up`'s outcomes is not run again in later rounds.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from buzzer import caches
from buzzer.errors import BuzzerError, DataError
from buzzer.models.api.context import Data
from buzzer.suite.escape import printable
from buzzer.suite.records import integrity, record
from buzzer.suite.records.schema import Record
from buzzer.suite.run import fits, runner
from buzzer.suite.run.plan import Run
from buzzer.suite.run.supervise import PhaseCallback

Level = Literal["info", "warning", "record"]  # "record": a record that could not be written, as JSON


class Observer(Protocol):
    """Receives the progress of runs as it happens.

    To stop, `phase` may raise KeyboardInterrupt: the run ends and has a record. Raised by `preparing`, it ends the call.
    """

    def planned(self, runs: int) -> None:
        """So many timed runs are about to begin."""
        ...

    def preparing(self, share: float, what: str) -> None:
        """This share (0 to 1) of the input data has been made or checked."""
        ...

    def phase(self, run: Run, name: str, elapsed_s: float) -> None:
        """A run is in this phase, so many seconds after its start. Called several times a second."""
        ...

    def finished(self, run: Run, record: Record) -> None:
        """A run has ended, and its record is on disk."""
        ...

    def message(self, text: str, level: Level = "info") -> None:
        """A line for the user."""
        ...


class Workload(Protocol):
    """How the runs of one task, or of one model, are done. `data` is known after the fit at the latest."""

    data: Data
    fit_name: str  # as messages name what comes before the timed runs
    keeps_fit: bool  # whether that has a record of its own on disk

    def fit(self, run: Run, watch: PhaseCallback) -> Record | None:
        """Make what the timed runs need: its record, or None where it is there already."""
        ...

    def execute(self, run: Run, others: Sequence[Record], watch: PhaseCallback) -> Record:
        """Do a timed run. `others` are the records that its gate may compare it with."""
        ...

    def outcome_without(self, fit: Record) -> str:
        """The outcome of a timed run that cannot start, as its fit failed."""
        ...

    def recorded(self, record: Record) -> None:
        """The record of a timed run is on disk."""
        ...


@dataclass(frozen=True)
class Step:
    """One run of a plan: a fit, or a timed run."""

    run: Run
    workload: Workload
    problem: BuzzerError | None = None  # why it cannot run here

    @property
    def is_fit(self) -> bool:
        """Whether it makes what the timed runs of its workload need."""
        return self.run.job == "fit"


def is_record_of(run: Run, data: Data, record: Record) -> bool:
    """Whether a record is a run of this very plan item, by the fit that it would use now."""
    return run.matches(record, data) and record.fit_id == fits.fit_id(run, data)


class Executor:
    """Runs steps, with their records in the folder `out`; reads what is there once, at the start.

    Raises DataError where the folder takes no record.
    """

    def __init__(self, out: Path, observer: Observer, resume: bool = False) -> None:
        record.check_writable(out)
        self.out, self.observer, self.resume = out, observer, resume
        checked = integrity.examine(record.paths([out]))
        for path, problems in checked.problems.items():
            if problems:
                observer.message(printable(f"left out: {path}: {'; '.join(problems)}"), "warning")
        self.past: list[Record] = list(checked.good.values())  # valid records of earlier calls
        self.made: list[Record] = []
        self.reused: list[Record] = []  # those of `past` that stand for a run, with `resume`
        self._failed_fits: dict[Workload, Record] = {}

    @property
    def records(self) -> list[Record]:
        """All valid records of the folder."""
        return [*self.past, *self.made]

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped the last run."""
        return bool(self.made) and runner.interrupted(self.made[-1])

    def run(self, steps: Sequence[Step], give_up: Collection[str] = ()) -> Iterator[Record]:
        """Do the steps; their records, as soon as each is written."""
        steps = self._to_do(steps)
        self.observer.planned(sum(not step.is_fit for step in steps))
        given_up: list[Run] = []
        for step in steps:
            variant = replace(step.run, repeat=0, control=False)
            if variant in given_up:
                continue
            new = self._fit(step) if step.is_fit else self._timed(step)
            if new is None:
                continue
            yield new
            if self.interrupted:
                goes_on = ", `--resume` goes on from there" if step.workload.keeps_fit else ""
                self.observer.message(f"interrupted; what ended is on disk{goes_on}")
                return
            if not step.is_fit and new.outcome in give_up:
                given_up.append(variant)

    def _to_do(self, steps: Sequence[Step]) -> list[Step]:
        """The steps without the timed runs that have a record, and without the fits that only those need."""
        if not self.resume:
            return list(steps)
        left = []
        for step in steps:
            done = [] if step.is_fit else [p for p in self.past if self._is_done(step, p)]
            self.reused += done[-1:]
            if done:
                self.observer.message(f"- {step.run.label}: done before, skipped")
            else:
                left.append(step)
        needed = {step.workload for step in left if not step.is_fit}
        return [step for step in left if step.workload in needed]

    @staticmethod
    def _is_done(step: Step, past: Record) -> bool:
        return past.outcome == "ok" and is_record_of(step.run, step.workload.data, past)

    def _fit(self, step: Step) -> Record | None:
        """Make a fit. Its record; None where it was made before, or has no record of its own."""
        new = step.workload.fit(step.run, self._watch(step.run))
        if new is not None and new.outcome != "ok":
            self._failed_fits[step.workload] = new
        return self._keep(new, step.run) if new is not None and step.workload.keeps_fit else None

    def _timed(self, step: Step) -> Record:
        """The record of a timed run, whether it could start or not."""
        run, workload, fit = step.run, step.workload, self._failed_fits.get(step.workload)
        if step.problem is not None:
            new = runner.not_started(
                run, workload.data, "unsupported", step.problem.message, step.problem.hint
            )
        elif fit is not None:
            message = f"its {workload.fit_name} ended {fit.outcome}: {fit.message}"
            outcome = workload.outcome_without(fit)
            new = runner.not_started(run, workload.data, outcome, message, fit.hint, fit.fit_id)
            if runner.interrupted(fit):
                new = new.model_copy(update={"details": fit.details})
        else:
            new = workload.execute(run, self.records, self._watch(run))
        self._keep(new, run)
        workload.recorded(new)
        return new

    def _watch(self, run: Run) -> Callable[[str, float], None]:
        return lambda phase, elapsed_s: self.observer.phase(run, phase, elapsed_s)

    def _keep(self, new: Record, run: Run) -> Record:
        """Write a record. Raises DataError that says where it is where it cannot be written."""
        try:
            record.write(new, self.out)
        except DataError as error:
            message = f"{error.message}; the record of {run.label} is {self._spare(new)}"
            hint = "free some space, move it into --out, and go on with --resume"
            raise DataError(message, hint) from error
        self.made.append(new)
        self.observer.finished(run, new)
        return new

    def _spare(self, new: Record) -> str:
        """Keep a record that its folder does not take: in the cache, or else as a message. Where it is."""
        try:
            return f"in {record.write(new, caches.folder() / 'records')}"
        except DataError:
            self.observer.message(new.model_dump_json(), "record")
            return "above, as JSON"
