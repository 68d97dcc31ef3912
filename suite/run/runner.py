"""Does one planned run and returns its record: locks, reads the inputs, starts and follows the worker, builds the record, applies the gate.

Every run has exactly one record, however it ends.
"""

import math
import os
import platform
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from buzzer import caches, locks, manifest
from buzzer.errors import BuzzerError, DataError
from buzzer.models.api.context import SCORE, Data, RunContext
from buzzer.suite import budget as budgets
from buzzer.suite.records import gate, layout, machine, record
from buzzer.suite.records.schema import Gate, Record
from buzzer.suite.run import (
    counters,
    fits,
    inputs,
    limits,
    reaper,
    record_builder,
    sittings,
    supervise,
)
from buzzer.suite.run.limits import Measured, Reason
from buzzer.suite.run.plan import Run
from buzzer.suite.run.progress import EventReader, Part, RunProgress
from buzzer.suite.run.record_builder import INTERRUPTED, RESUME, Ending, Usage
from buzzer.suite.run.sittings import Sitting
from buzzer.suite.run.spec import WorkerSpec
from buzzer.suite.run.supervise import PhaseCallback
from buzzer.suite.run.worker import load_entry

EVENTS, SPEC = "events.jsonl", "spec.json"


def fit(run: Run, data: Data, cache: Path, on_progress: PhaseCallback) -> Record | None:
    """Train, unless the cache has an undamaged copy of this fit. Returns the record of the training, or None.

    The task writes into `<folder>.partial`. If the run is stopped, that folder stays, so that the task can continue from its
    checkpoints. A complete fit gets its final name. Another process that needs the same fit waits for this one.
    """
    folder, fit_id = fits.folder(run, data, cache), fits.fit_id(run, data)
    if not manifest.problem(folder):
        return None
    with ExitStack() as held:
        # In this order: a run within a run takes only the second lock, and whoever holds that must not wait for the outer run.
        wanted = (exclusive(cache, on_progress), lock(sibling(folder, "lock"), on_progress))
        if not all(acquire(held, each) for each in wanted):
            return stopped_waiting(run, data, fit_id)
        if manifest.is_whole(folder):  # another process may have made it in the meantime
            return None
        partial = sibling(folder, "partial")
        make_folder(partial)
        trained = execute(run, data, partial, partial, (), on_progress, fit_id=fit_id)
        return seal_fit(trained, partial, folder) if trained.outcome == "ok" else trained


def sibling(folder: Path, suffix: str) -> Path:
    """The path next to a folder with the folder's name and a suffix."""
    return folder.with_name(f"{folder.name}.{suffix}")


def seal_fit(trained: Record, partial: Path, folder: Path) -> Record:
    """Give a complete fit its manifest and its final name. Returns its record, as an `error` if that fails."""
    try:
        manifest.seal(partial)
        partial.rename(folder)
    except OSError as error:
        message = f"the fit cannot be saved as {folder}: {error.strerror}"
        hint = f"free some space or set {caches.HOME} to another folder"
        return trained.model_copy(update={"outcome": "error", "message": message, "hint": hint})
    return trained


def silent(text: str) -> None:
    """Show nothing."""


def predict(
    run: Run,
    data: Data,
    cache: Path,
    out: Path,
    others: Iterable[Record],
    on_progress: PhaseCallback,
    resume: bool = False,
    tell: sittings.Tell = silent,
) -> Record:
    """Do the timed run and return its record. Its files (the submission) are under `out`/files/<first 8 digits of run_id>.

    The gate looks for the reference among the records `others`. A run whose fit is damaged, or that changes its fit, is an `error`. With
    `resume`, a run of a resumable task that was interrupted goes on; `tell` gets a line about it.
    """
    run_id, fitted, fit_id = uuid.uuid4().hex, fits.folder(run, data, cache), fits.fit_id(run, data)
    with ExitStack() as held:
        if not acquire(held, exclusive(cache, on_progress)):
            return stopped_waiting(run, data, fit_id)
        if problem := manifest.problem(fitted):
            message = f"the fit {fitted} cannot be used: {problem}"
            return not_started(run, data, "error", message, "run it again: the fit is made again", fit_id)
        sitting = None
        if run.task.resumable:
            kept = sittings.folder_of(run, out)  # another cache or machine may use the same `out`
            if not acquire(held, lock(kept.with_name(f".{kept.name}.lock"), on_progress)):
                return stopped_waiting(run, data, fit_id)
            sitting = sittings.opened(run, data, fit_id, out, resume, tell)
        if sitting is not None and sitting.spent_s > (run.budget.time_s or math.inf):
            message = f"the buzzer went: earlier sittings took {sitting.spent_s:.1f} s, the budget has {run.budget.time_s:g} s"
            late = not_started(run, data, "timeout", message, record_builder.MORE_TIME, fit_id)
            sitting.end(late, interrupted=False)
            return late
        files = out / layout.FILES / run_id[:8]
        make_folder(files)
        before, sealed = manifest.state(fitted), (fitted / manifest.NAME).read_bytes()
        try:
            with reaper.swept(files):
                reads = (data.folder, fitted)
                timed = execute(run, data, fitted, files, others, on_progress, run_id, fit_id, reads, sitting)
            changed = manifest.rewritten(fitted, before, sealed)
            if sitting is not None:
                timed = sitting_ended(sitting, timed, files, unchanged=not changed)
        finally:
            with suppress(OSError):
                files.rmdir()  # only if nothing was written
        return fit_changed(timed, changed) if changed and not interrupted(timed) else timed


def sitting_ended(sitting: Sitting, timed: Record, files: Path, unchanged: bool) -> Record:
    """The record of a run in sittings, with a hint if it can go on: if it was interrupted and the fit is `unchanged`.

    The unfinished submission of an interrupted run is deleted.
    """
    sitting.end(timed, interrupted(timed) and unchanged)
    if not interrupted(timed):
        return timed
    shutil.rmtree(files, ignore_errors=True)
    return timed.model_copy(update={"hint": sittings.HINT}) if unchanged else timed


def fit_changed(timed: Record, names: Sequence[str]) -> Record:
    """The record of a run that changed files of the fit, which other runs use as well."""
    update = {
        "outcome": "error",
        "message": f"the run changed the fit: {', '.join(names[:3])}",
        "hint": "`predict` may only read what `fit` saved; the next call makes the fit again",
        "scores": {},
        "gate": Gate(status="unscored"),
    }
    return timed.model_copy(update=update)


def bench(run: Run, data: Data, cache: Path, work: Path, out: Path, on_progress: PhaseCallback) -> Record:
    """Do a run of `buzzer bench`, which has no fit in the cache, and return its record."""
    with ExitStack() as held:
        if not acquire(held, exclusive(cache, on_progress)):
            return stopped_waiting(run, data, None)
        return execute(run, data, work, out, (), on_progress)


def exclusive(cache: Path, on_progress: PhaseCallback) -> AbstractContextManager[None]:
    """The lock that allows one measured run at a time on this machine and cache. A run that another run started needs no lock."""
    if reaper.VARIABLE in os.environ:
        return nullcontext()
    return lock(cache / f"measuring-{platform.node()}.lock", on_progress)


def lock(path: Path, on_progress: PhaseCallback) -> AbstractContextManager[None]:
    """A lock file. While the run waits for it, the waiting is reported as a phase."""
    return locks.held(path, lambda message: on_progress(message, 0.0, None))


def acquire(held: ExitStack, wanted: AbstractContextManager[None]) -> bool:
    """Wait for the lock and add it to `held`. Returns False if the user stopped the waiting."""
    try:
        held.enter_context(wanted)
    except KeyboardInterrupt:
        return False
    return True


def make_folder(path: Path) -> None:
    """Create a folder. Raises DataError if that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot create {path}: {error.strerror}", "free some space or choose another folder"
        ) from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder for the worker's spec and events. Raises DataError if it cannot be created."""
    try:
        holder = tempfile.TemporaryDirectory(prefix="buzzer-run-", ignore_cleanup_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot create a temporary folder: {error.strerror}",
            "set TMPDIR to a folder that can be written",
        ) from error
    with holder as name, reaper.swept(Path(name)) as folder:
        yield folder


def context_of(run: Run, data: Data, work: Path, out: Path, partial: Path | None = None) -> RunContext:
    """The context that the task gets."""
    return RunContext(
        task=run.task.name,
        engine=run.engine,
        backend=run.backend,
        precision=run.precision,
        device=run.device,
        data=data.folder,
        work=work,
        out=out,
        scale=data.scale,
        seed=run.seed,
        threads=min(run.budget.cores or 10**6, len(budgets.allowed_cores())),
        params=run.task.params,
        workers=run.workers,
        scheduler=run.scheduler,
        gpu_memory_bytes=run.budget.gpu_memory_bytes,
        partial=None if partial is None else partial.absolute(),
    )


def execute(
    run: Run,
    data: Data,
    work: Path,
    out: Path,
    others: Iterable[Record],
    on_progress: PhaseCallback,
    run_id: str = "",
    fit_id: str | None = None,
    reads: Sequence[Path] = (),
    sitting: Sitting | None = None,
) -> Record:
    """Run the worker under the budget. Returns its record, judged by the gate. `reads` are the folders of its inputs.

    With a `sitting`, the record is that of the whole run: this sitting and the earlier ones.
    """
    began_s, load_before, compiled_caches = time.perf_counter(), machine.load_average(), caches.state()
    before = inputs.state(reads)
    warm = inputs.warm(before)
    limiter, meter = limits.limiter(run.budget), counters.Meter(run.device)

    def sample(phase: str, elapsed_s: float, part: Part | None) -> None:
        if phase == SCORE:
            meter.stop()
        else:
            meter.sample()
        if sitting is not None:
            sitting.note(events.progress, events.progress.age_s(elapsed_s))
        on_progress(phase, elapsed_s, part)

    partial, earlier, spent_s = None, None, 0.0
    if sitting is not None:
        partial, earlier, spent_s = sitting.pieces, sitting.earlier, sitting.spent_s
    with temporary_folder() as folder, EventReader(folder / EVENTS) as events:
        context = context_of(run, data, work, out, partial)
        spec = WorkerSpec(context, run.job, run.task.entry, folder / EVENTS)
        record.write_text(folder / SPEC, spec.to_json())
        command = [sys.executable, "-m", "buzzer.suite.run.worker", str(folder / SPEC)]
        neighbours = counters.Neighbours(limits.usable_cores(run.budget) or budgets.allowed_cores())
        own_cpu_s = time.process_time()
        process, age_s = supervise.supervise(
            limiter, command, folder / "stderr", run.budget, events, sample, spent_s
        )
        harness_cpu_s, others_cpu_s = time.process_time() - own_cpu_s, neighbours.cpu_s(process.cpu_s)
        progress, tail = events.read(), supervise.stderr_tail(folder / "stderr")
        temporary_full = is_full(folder.parent)
    usage = Usage(
        load_before=load_before,
        process=process,
        age_s=age_s,
        enforcement=limiter.enforcement,
        counters=meter.stop(),
        others_cpu_s=None if run.scheduler else others_cpu_s,  # the workers of a cluster belong to the run
        page_cache=("warm" if warm else "as found") if before else None,
        compiled_caches=compiled_caches,
        stderr_tail=tail,
        temporary_full=temporary_full,
        began_s=began_s,
        harness_cpu_s=harness_cpu_s,
    )
    distrust = ""
    if process.reason is not Reason.INTERRUPTED:  # else the suite would not know that the user stopped it
        distrust = false_report(progress, process, out) or changed_inputs(before, run, data)
    run_id = run_id or uuid.uuid4().hex
    built = record_builder.build(run, data, progress, usage, run_id=run_id, fit_id=fit_id, distrust=distrust)
    return gate.judge(sittings.total(built, earlier), run.task, others)


def is_full(folder: Path) -> bool:
    """Whether the disk of a folder has no space left for a record."""
    with suppress(OSError):
        return shutil.disk_usage(folder).free < record.TRIAL_BYTES
    return False


def false_report(progress: RunProgress, process: Measured, out: Path) -> str:
    """What the run reported although the harness measured otherwise, in words; "" if nothing."""
    if process.started_s is None:
        return ""
    report = progress.contradiction(process.started_s)
    if not report and (changed := progress.changed_later(out)):
        report = f"that scoring had begun, but {', '.join(changed)} was written afterwards"
    return report and f"the run reported {report}"


def changed_inputs(before: inputs.State, run: Run, data: Data) -> str:
    """The data files that the run changed, in words; "" if none. (`predict` checks the fit.)

    If only ctimes differ, the contents are checked again.
    """
    if not before:
        return ""
    data_files = {path: facts for path, facts in before.items() if path.is_relative_to(data.folder)}
    changed = inputs.changed(data_files, [data.folder])
    if changed and inputs.only_ctimes(data_files, [data.folder]) and has_fingerprint(run, data):
        return ""
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"its inputs changed during the run: {', '.join(changed[:3])}{more}" if changed else ""


def has_fingerprint(run: Run, data: Data) -> bool:
    """Whether the contents of the input files still have the fingerprint of `data`."""
    task = load_entry(run.task.entry, run.task.name)
    try:
        # A new cache has no verdict of an earlier check.
        with tempfile.TemporaryDirectory(prefix="buzzer-check-") as cache:
            again = task.prepare(data.folder, Path(cache), run.scale, run.seed, lambda share, what: None)
    except (BuzzerError, OSError):
        return False
    return again.fingerprint == data.fingerprint


def interrupted(done: Record) -> bool:
    """Whether the user stopped this run. No run is started after it."""
    return done.outcome == "error" and done.details.get(INTERRUPTED) is True


def not_started(
    run: Run, data: Data, outcome: str, message: str, hint: str, fit_id: str | None = None
) -> Record:
    """The record of a run that could not begin (its fit failed, for example)."""
    usage, ending = Usage(machine.load_average()), Ending(outcome, message, hint)
    return record_builder.assemble(run, data, usage, ending, uuid.uuid4().hex, fit_id)


def stopped_waiting(run: Run, data: Data, fit_id: str | None) -> Record:
    """The record of a run that the user stopped before it could begin."""
    message = "interrupted while it waited for another process"
    stopped = not_started(run, data, "error", message, RESUME, fit_id)
    return stopped.model_copy(update={"details": {INTERRUPTED: True}})
