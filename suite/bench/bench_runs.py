"""Turns the plan of `buzzer bench` into steps for the executor: first the reference outputs, then every variant."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from buzzer import caches
from buzzer.errors import DataError, UnsupportedError, UsageError
from buzzer.models.api.context import Data
from buzzer.suite.bench import loadgen, plan, settings
from buzzer.suite.bench.plan import BenchSelection
from buzzer.suite.records.schema import Record
from buzzer.suite.run import reaper, runner
from buzzer.suite.run.executor import Executor, Step
from buzzer.suite.run.plan import Run
from buzzer.suite.run.supervise import PhaseCallback

GIVE_UP = frozenset({"unsupported"})  # outcomes after which a variant is not run in later rounds


class BenchWorkload:
    """Carries out the runs of one model at one size. `work` is a temporary folder, `out` the folder of the records.

    The roofline is measured once for all sizes that have the same device and budget: it is kept beside `work`.
    """

    fit_name = "reference"
    keeps_fit = False

    def __init__(self, work: Path, out: Path) -> None:
        self.work, self.out = work, out
        self.answers = caches.folder() / "bench"
        self.data = Data(self.answers, "", "generated", {}, 1.0)
        self.model_hash = ""  # of the model that `fit` has loaded
        self._files: dict[str, Path] = {}  # folder of the files that a run wrote, by run_id

    def fit(self, run: Run, watch: PhaseCallback) -> Record:
        """Compute the reference outputs. Raises UsageError or UnsupportedError if the model or its sizes cannot be run."""
        self.work.mkdir()
        roof = self.work.parent / f"roof-{run.device}-{run.budget.name}.json"
        if roof.exists():
            shutil.copy(roof, self.work / settings.ROOF)
        reference = runner.bench(run, self.data, caches.folder(), self.work, self.work, watch)
        if reference.outcome == "unsupported":
            raise UnsupportedError(reference.message, reference.hint)
        if reference.outcome == "error" and reference.details.get("user_error"):
            raise UsageError(reference.message, reference.hint)
        if reference.outcome == "ok":
            shutil.copy(self.work / settings.ROOF, roof)
            facts = reference.details
            self.model_hash = facts["model_hash"]
            origin = facts["fingerprint"], facts["source"]
            self.data = Data(self.answers, *origin, {}, 1.0, tuple(facts["notes"]))
        return reference

    def resolved(self, run: Run) -> Run:
        """The run with the hash of a named model among its parameters. That of a file is there from the start."""
        params = {"model_hash": self.model_hash, **run.task.params} if self.model_hash else run.task.params
        return replace(run, task=run.task.model_copy(update={"params": params}))

    def execute(self, run: Run, others: Sequence[Record], watch: PhaseCallback) -> Record:
        """Time one variant and return its record."""
        files = Path(tempfile.mkdtemp(dir=self.work))
        new = runner.bench(run, self.data, caches.folder(), self.work, files, watch)
        self._files[new.run_id] = files
        return new

    def outcome_without(self, fit: Record) -> str:
        """The outcome of the reference, which has the same limits."""
        return fit.outcome

    def is_done(self, run: Run, past: Record) -> bool:
        """Whether a record is of this run: of the same model, inputs, sizes and settings.

        Before a run, a named model is known by its name only, and its inputs are not compared value by value.
        """
        known = {"model_hash": past.config["model_hash"]} if "model_hash" in past.config else {}
        task = run.task.model_copy(update={"params": {**known, **run.task.params}})
        return replace(run, task=task).matches(past, replace(self.data, fingerprint=past.data_fingerprint))

    def recorded(self, record: Record) -> None:
        """Keep LoadGen's logs, if there are any, next to the records."""
        if (files := self._files.pop(record.run_id, None)) is not None:
            keep_logs(files, self.out / "files" / record.run_id[:8])
            shutil.rmtree(files, ignore_errors=True)


def check(selections: Sequence[BenchSelection]) -> None:
    """Raises UsageError or DataError for what can be seen to be wrong before a process is started."""
    for selection in selections:
        run = plan.reference_run(selection)
        settings.check(run.task.name, run.task.params, run.seed)


def execute(selections: Sequence[BenchSelection], executor: Executor) -> Iterator[Record]:
    """Time every selection. Yields each record as soon as it is written."""
    with (
        tempfile.TemporaryDirectory(prefix="buzzer-bench-", ignore_cleanup_errors=True) as work,
        reaper.swept(Path(work)),
    ):
        yield from executor.run(steps(selections, Path(work), executor.out), GIVE_UP)


def steps(selections: Sequence[BenchSelection], work: Path, out: Path) -> list[Step]:
    """The steps: for each selection its reference, unless none of its runs can start here, then its runs."""
    planned: list[Step] = []
    for number, selection in enumerate(selections):
        workload = BenchWorkload(work / str(number), out)
        items = plan.plan(selection)
        if any(item.problem is None for item in items):
            planned.append(Step(plan.reference_run(selection), workload))
        planned += [Step(item.run, workload, item.problem) for item in items]
    return planned


def keep_logs(written: Path, kept: Path) -> None:
    """Copy LoadGen's logs into a folder. Raises DataError if they cannot be written."""
    if logs := sorted(written.glob(loadgen.LOGS)):
        runner.make_folder(kept)
        try:
            for log in logs:
                shutil.copy(log, kept / log.name)
        except OSError as error:
            raise DataError(f"{kept}: LoadGen's logs cannot be kept: {error.strerror}") from error
