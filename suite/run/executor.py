"""Runs steps one after the other and writes a record for each. `run`, `compare`, `bench` and `frontier` share these rules:

- A record is written as soon as its run ends. If it cannot be written to its folder, it is kept in the cache or printed, and DataError
  says where it is.
- A run that the user stops has a record too (`runner.interrupted`). No run is started after it.
- A timed run whose fit failed is not started; its record says why.
- With `resume`, a run that has an `ok` record in the folder is skipped.
- A fit is skipped if all its runs are, or cannot run on this machine.
- A variant that ended in one of the outcomes in `give_up` is not run again in later rounds.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from buzzer import caches
from buzzer.errors import BuzzerError, DataError
from buzzer.models.api.context import Data
from buzzer.suite.records import integrity, record
from buzzer.suite.records.schema import Record
from buzzer.suite.run import fits, runner
from buzzer.suite.run.estimates import Estimates
from buzzer.suite.run.plan import Run
from buzzer.suite.run.progress import Part
from buzzer.suite.run.supervise import PhaseCallback

Level = Literal["info", "warning", "record"]  # "record": a record that could not be written, as JSON


@runtime_checkable
class Observer(Protocol):
    """Receives the progress of runs as it happens.

    `phase` may raise KeyboardInterrupt to stop: the run is ended and gets a record. If `preparing` raises it, the call ends.
    """

    def planned(self, runs: int) -> None:
        """`runs` timed runs are about to begin."""
        ...

    def preparing(self, share: float, what: str) -> None:
        """The share (0 to 1) of the input data that has been generated or checked; `what` names the current step."""
        ...

    def phase(self, run: Run, name: str, elapsed_s: float, part: Part | None) -> None:
        """A run is in phase `name`, `elapsed_s` seconds after its start. Called several times a second.

        part: how much of the phase is done, if the run is a fit that reports it.
        """
        ...

    def finished(self, run: Run, record: Record) -> None:
        """A run has ended, and its record is on disk."""
        ...

    def message(self, text: str, level: Level = "info") -> None:
        """Show one line of text to the user."""
        ...


class Workload(Protocol):
    """Carries out the runs of one task or of one model. `data` is complete once `fit` has returned."""

    data: Data
    fit_name: str  # what messages call the step before the timed runs
    keeps_fit: bool  # whether the record of that step is written to disk

    def fit(self, run: Run, watch: PhaseCallback) -> Record | None:
        """Make what the timed runs need. Returns its record, or None if it already exists."""
        ...

    def resolved(self, run: Run) -> Run:
        """A timed run with the parameters that are known only once `fit` has returned."""
        ...

    def execute(self, run: Run, others: Sequence[Record], watch: PhaseCallback) -> Record:
        """Do a timed run and return its record. The gate may compare it with the records `others`."""
        ...

    def outcome_without(self, fit: Record) -> str:
        """The outcome of a timed run that cannot start because its fit failed."""
        ...

    def is_done(self, run: Run, past: Record) -> bool:
        """Whether a record is of a timed run as it would be made now."""
        ...

    def recorded(self, record: Record) -> None:
        """Called when the record of a timed run has been written to disk."""
        ...


@dataclass(frozen=True)
class Step:
    """One run of a plan: a fit, or a timed run."""

    run: Run
    workload: Workload
    problem: BuzzerError | None = None  # why it cannot run on this machine

    @property
    def is_fit(self) -> bool:
        """Whether the step makes what the timed runs of its workload need."""
        return self.run.job == "fit"


def is_record_of(run: Run, data: Data, record: Record) -> bool:
    """Whether a record is a run of this very plan item, by the fit that it would use now."""
    return run.matches(record, data) and record.fit_id == fits.fit_id(run, data)


class Executor:
    """Runs steps and writes their records to the folder `out`. Reads the records of earlier calls once, when it is created.

    Raises DataError if records cannot be written to the folder.
    """

    def __init__(self, out: Path, observer: Observer, resume: bool = False) -> None:
        record.check_writable(out)
        self.out, self.observer, self.resume = out, observer, resume
        checked = integrity.examine(record.paths([out]))
        for line in checked.left_out():
            observer.message(line, "warning")
        self.past: list[Record] = list(checked.good.values())  # valid records of earlier calls
        self.written: list[Record] = []  # records of this call
        self.reused: list[Record] = []  # with `resume`, records of `past` whose runs were skipped
        self._failed_fits: dict[Workload, Record] = {}

    @property
    def records(self) -> list[Record]:
        """All valid records of the folder."""
        return [*self.past, *self.written]

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped the last run."""
        return bool(self.written) and runner.interrupted(self.written[-1])

    def run(self, steps: Sequence[Step], give_up: Collection[str] = ()) -> Iterator[Record]:
        """Do the steps. Yields each record as soon as it is written."""
        expected = Estimates(self.past)
        steps = [
            replace(step, run=replace(step.run, expected_s=expected.seconds(step.run)))
            for step in self._to_do(steps)
        ]
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
                hint = "`--resume` does the remaining runs"
                self.observer.message(f"interrupted; the records of finished runs are on disk; {hint}")
                return
            if not step.is_fit and new.outcome in give_up:
                given_up.append(variant)

    def _to_do(self, steps: Sequence[Step]) -> list[Step]:
        """The steps that are left to do: no timed run that has a record, and no fit that no run needs."""
        left = []
        for step in steps:
            done = [p for p in self.past if self._is_done(step, p)] if self.resume and not step.is_fit else []
            self.reused += done[-1:]
            if done:
                self.observer.message(f"- {step.run.title}: has a record, skipped")
            else:
                left.append(step)
        timed = {step.workload for step in steps if not step.is_fit}
        needed = {step.workload for step in left if not step.is_fit and step.problem is None}
        return [step for step in left if not step.is_fit or step.workload not in timed - needed]

    @staticmethod
    def _is_done(step: Step, past: Record) -> bool:
        return past.outcome == "ok" and step.workload.is_done(step.run, past)

    def _fit(self, step: Step) -> Record | None:
        """Make a fit. Returns its record; None if the fit already exists, or if its record is not written to disk."""
        new = step.workload.fit(step.run, self._watch(step.run))
        if new is not None and new.outcome != "ok":
            self._failed_fits[step.workload] = new
        return self._save(new, step.run) if new is not None and step.workload.keeps_fit else None

    def _timed(self, step: Step) -> Record:
        """Do a timed run and write its record. A run that cannot start has a record too."""
        workload, fit = step.workload, self._failed_fits.get(step.workload)
        run = workload.resolved(step.run)
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
        self._save(new, run)
        workload.recorded(new)
        return new

    def _watch(self, run: Run) -> PhaseCallback:
        return lambda phase, elapsed_s, part: self.observer.phase(run, phase, elapsed_s, part)

    def _save(self, new: Record, run: Run) -> Record:
        """Write a record. If that fails, the record is kept elsewhere, and DataError says where."""
        try:
            record.write(new, self.out)
        except DataError as error:
            message = f"{error.message}; the record of {run.label} is {self._save_elsewhere(new)}"
            hint = "free some space, move the record into --out, and continue with --resume"
            raise DataError(message, hint) from error
        self.written.append(new)
        self.observer.finished(run, new)
        return new

    def _save_elsewhere(self, new: Record) -> str:
        """Save a record in the cache or, if that fails too, show it as a message. Returns where it is, in words."""
        try:
            return f"in {record.write(new, caches.folder() / 'records')}"
        except DataError:
            self.observer.message(new.model_dump_json(), "record")
            return "above, as JSON"
