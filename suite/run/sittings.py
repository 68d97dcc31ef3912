"""A timed run that is interrupted and goes on in another process: a run in several sittings.

The run has a folder next to its submission, with the whole pieces of its work (`RunContext.partial`) and a note of what it has taken so
far. The harness writes the note, so it exists even if harness and run are killed or the machine is switched off. A sitting that ended
without a last note counts as `NOTE_S` longer than its last note, the longest time between two notes.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from buzzer.errors import DataError
from buzzer.models.api.context import SCORE, Data
from buzzer.suite import budget as budgets
from buzzer.suite.records import layout, machine
from buzzer.suite.records.schema import Bytes, Joules, Name, Phase, Record, Seconds
from buzzer.suite.run import limits
from buzzer.suite.run.plan import Run
from buzzer.suite.run.progress import RunProgress
from buzzer.suite.run.record_builder import MORE_TIME

NOTE, PIECES = "note.json", "pieces"
EVERY_S, NOTE_S = (
    4.0,
    5.0,
)  # seconds between two notes; the same at most, with the time of the poll and of the disk
HINT = "`--resume` goes on from its last whole piece"
Tell = Callable[[str], None]


class Spent(BaseModel):
    """What the sittings of a run have taken so far, without scoring. None = not known of all of them."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)
    sittings: int = Field(default=1, ge=1)
    wall_s: Seconds = 0.0
    cpu_s: Seconds | None = 0.0
    peak_memory_bytes: Bytes | None = None
    gpu_peak_memory_bytes: Bytes | None = None
    gpu_busy_s: Seconds | None = None
    energy_j: dict[Name, Joules] | None = None
    others_cpu_s: Seconds | None = None
    phases: list[Phase] = []
    samples: dict[Name, list[Seconds]] = {}

    @classmethod
    def of(cls, r: Record) -> "Spent":
        """What a run has taken by its record."""
        values: dict[str, Any] = {name: getattr(r, name) for name in cls.model_fields}
        phases = [p for p in r.phases if p.name != SCORE]
        return cls(**values | {"phases": phases, "samples": whole_samples(phases, r.samples)})


class Note(BaseModel):
    """The content of the note's file."""

    model_config = ConfigDict(extra="forbid")
    identity: dict[str, str]
    spent: Spent
    state: Literal["running", "interrupted"]


def whole_samples(phases: Sequence[Phase], samples: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The laps of some phases. The rest of a phase that was interrupted in a lap is a lap of its own."""
    laps = {p.name: [*samples.get(p.name, [])] for p in phases}
    for p in phases:
        if (rest := p.wall_s - sum(laps[p.name])) > 1e-6 * p.wall_s:
            laps[p.name].append(rest)
    return laps


def identity(run: Run, data: Data, fit_id: str) -> dict[str, str]:
    """Everything in which a later sitting must agree with the first, by name."""
    facts = {
        **slot(run),
        "data": data.fingerprint,
        "fit": fit_id,
        "cores": budgets.allowed_cores(),
        "machine": machine.describe(machine.machine()),
        "enforcement of limits": "cgroups" if limits.cgroups_work() else "polled",
        "library versions": machine.versions(),
    }
    return {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}


def slot(run: Run) -> dict[str, Any]:
    """The facts that name the folder of a run: two runs with different ones do not replace each other."""
    return {
        "task": run.task.name,
        "engine": run.engine,
        "backend": run.backend,
        "precision": run.precision,
        "device": run.device,
        "cluster": run.cluster,
        "budget": run.budget.as_dict(),
        "scale": [run.scale, run.train_scale],
        "seed": run.seed,
        "repetition": [run.repeat, run.control],
        "parameters": run.task.params,
    }


@dataclass
class Sitting:
    """One sitting of a run, and what the earlier ones took."""

    folder: Path
    identity: dict[str, str]
    earlier: Spent | None  # None = this is the first sitting
    _noted_s: float = 0.0  # time.perf_counter() of the last note

    @property
    def pieces(self) -> Path:
        """The folder for the whole pieces."""
        return self.folder / PIECES

    @property
    def spent_s(self) -> float:
        """Wall seconds of the earlier sittings."""
        return 0.0 if self.earlier is None else self.earlier.wall_s

    def note(self, progress: RunProgress, age_s: float) -> None:
        """Note what the run has taken, at most every `EVERY_S` seconds. `age_s`: seconds since the start of this sitting."""
        if time.perf_counter() - self._noted_s >= EVERY_S:
            self._write(plus(self.earlier, so_far(progress, age_s)), "running")

    def end(self, r: Record, interrupted: bool) -> None:
        """Keep the folder of a run that the user interrupted, with a last note; delete it after any other end."""
        if interrupted:
            self._write(Spent.of(r), "interrupted")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, spent: Spent, state: Literal["running", "interrupted"]) -> None:
        """Write the note atomically and to the disk itself, because the machine may be switched off.

        If that fails, there is no note, and the run cannot go on: an older note would make it shorter than it was.
        """
        text = Note(identity=self.identity, spent=spent, state=state).model_dump_json()
        note, temporary = self.folder / NOTE, self.folder / f".{NOTE}"
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(note)
        except OSError:
            with suppress(OSError):
                note.unlink(missing_ok=True)
        self._noted_s = time.perf_counter()


def folder_of(run: Run, out: Path) -> Path:
    """The folder of a run in sittings, below `out`."""
    key = hashlib.sha256(json.dumps(slot(run), sort_keys=True).encode()).hexdigest()[:16]
    return out / layout.FILES / f"partial-{run.task.name}-{key}"


def opened(run: Run, data: Data, fit_id: str, out: Path, resume: bool, tell: Tell) -> Sitting:
    """The next sitting of a run. `tell` gets a line about what earlier sittings left.

    Without `resume`, or if anything in `identity` differs, the run begins anew. Raises DataError if its folder cannot be created, or if
    the pieces of a run that begins anew cannot be deleted.
    """
    folder, earlier = folder_of(run, out), None
    facts = identity(run, data, fit_id)
    if folder.exists():
        problem, earlier = left_by(folder, facts) if resume else ("without --resume a run begins anew", None)
        if earlier is None:
            tell(f"- {run.label}: pieces of an interrupted run are deleted: {problem}")
            shutil.rmtree(folder, ignore_errors=True)
        else:
            tell(f"- {run.label}: goes on after {earlier.wall_s:.1f} s in {many(earlier.sittings)}")
    sitting = Sitting(folder, facts, earlier)
    try:
        sitting.pieces.mkdir(parents=True, exist_ok=earlier is not None)
    except OSError as error:
        raise DataError(
            f"cannot create {folder}: {error.strerror}", "free some space or choose another --out"
        ) from error
    sitting._write(plus(earlier, Spent()), "running")
    return sitting


def many(sittings: int) -> str:
    """A number of sittings in words."""
    return f"{sittings} sitting{'s' if sittings > 1 else ''}"


def left_by(folder: Path, facts: Mapping[str, str]) -> tuple[str, Spent | None]:
    """What the earlier sittings took; or why a run cannot go on with the pieces in its folder, and None."""
    try:
        note = Note.model_validate_json((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # ValidationError, or text that is not UTF-8
        return "their note cannot be read", None
    differ = [name for name in facts if note.identity.get(name) != facts[name]]
    if differ or note.identity.keys() != facts.keys():
        return f"{', '.join(differ) or 'its facts'} changed", None
    return "", note.spent if note.state == "interrupted" else longer(note.spent, NOTE_S)


def longer(spent: Spent, seconds: float) -> Spent:
    """The same with a longer last phase."""
    last = spent.phases[-1:] or [Phase(name="start", wall_s=0.0, cpu_s=0.0, peak_memory_bytes=0)]
    phases = [*spent.phases[:-1], last[0].model_copy(update={"wall_s": last[0].wall_s + seconds})]
    update = {"wall_s": spent.wall_s + seconds, "phases": phases, "cpu_s": None}
    return spent.model_copy(update=update | {"samples": whole_samples(phases, spent.samples)})


def so_far(progress: RunProgress, age_s: float) -> Spent:
    """What a running sitting has taken. CPU time, GPU use and energy are read at its end only."""
    wall_s = progress.running_since_s if progress.scoring else age_s
    phases = [p for p in progress.phases.values() if p.name != SCORE]
    if progress.running and progress.closed_s is None and not progress.scoring:
        phases = merged(phases, [running_phase(progress, age_s)])
    peak = max((p.peak_memory_bytes for p in phases), default=0) or None
    samples = whole_samples(phases, progress.samples)
    return Spent(wall_s=wall_s, cpu_s=None, peak_memory_bytes=peak, phases=phases, samples=samples)


def running_phase(progress: RunProgress, age_s: float) -> Phase:
    """The phase that is running, until now."""
    wall_s = max(age_s - progress.running_since_s, 0.0)
    return Phase(name=progress.running, wall_s=wall_s, cpu_s=0.0, peak_memory_bytes=0)


def merged(first: Sequence[Phase], second: Sequence[Phase]) -> list[Phase]:
    """The phases of two sittings, in the order of their first begin."""
    phases = {p.name: p for p in first}
    for p in second:
        before = phases.get(p.name)
        phases[p.name] = (
            p
            if before is None
            else Phase(
                name=p.name,
                wall_s=before.wall_s + p.wall_s,
                cpu_s=before.cpu_s + p.cpu_s,
                peak_memory_bytes=max(before.peak_memory_bytes, p.peak_memory_bytes),
            )
        )
    return list(phases.values())


def plus(earlier: Spent | None, now: Spent) -> Spent:
    """What two successive parts of a run took together: sums of times and energy, and the larger peaks."""
    if earlier is None:
        return now
    names = dict.fromkeys([*earlier.samples, *now.samples])
    return Spent(
        sittings=earlier.sittings + now.sittings,
        wall_s=earlier.wall_s + now.wall_s,
        cpu_s=sum_of(earlier.cpu_s, now.cpu_s),
        peak_memory_bytes=max_of(earlier.peak_memory_bytes, now.peak_memory_bytes),
        gpu_peak_memory_bytes=max_of(earlier.gpu_peak_memory_bytes, now.gpu_peak_memory_bytes),
        gpu_busy_s=sum_of(earlier.gpu_busy_s, now.gpu_busy_s),
        energy_j=energy_of(earlier.energy_j, now.energy_j),
        others_cpu_s=sum_of(earlier.others_cpu_s, now.others_cpu_s),
        phases=merged(earlier.phases, now.phases),
        samples={name: [*earlier.samples.get(name, []), *now.samples.get(name, [])] for name in names},
    )


def sum_of(a: float | None, b: float | None) -> float | None:
    """The sum; None if a part is not known."""
    return None if a is None or b is None else a + b


def max_of(a: int | None, b: int | None) -> int | None:
    """The larger of the values that are known."""
    return max((value for value in (a, b) if value is not None), default=None)


def energy_of(a: Mapping[str, float] | None, b: Mapping[str, float] | None) -> dict[str, float] | None:
    """The sums by source; None if a source is not known of both."""
    return None if a is None or b is None or a.keys() != b.keys() else {name: a[name] + b[name] for name in a}


def total(r: Record, earlier: Spent | None) -> Record:
    """The record of a whole run, made from the record of its last sitting. It is a `timeout` if the sum exceeds the budget's time."""
    if earlier is None:
        return r
    scoring = [p for p in r.phases if p.name == SCORE]
    spent = plus(earlier, Spent.of(r))
    update = {name: getattr(spent, name) for name in Spent.model_fields}
    update |= {
        "phases": [*spent.phases, *scoring],
        "samples": spent.samples | {SCORE: r.samples[SCORE]} if SCORE in r.samples else spent.samples,
        "notes": [*r.notes, note_of(spent)],
    }
    limit_s = r.budget.time_s
    if r.outcome in ("ok", "wrong") and limit_s is not None and spent.wall_s > limit_s:
        message = f"the buzzer went: {spent.sittings} sittings took {spent.wall_s:.2f} s, the budget has {limit_s:g} s"
        update |= {"outcome": "timeout", "message": message, "hint": MORE_TIME}
    return Record.model_validate(dict(r) | update)


def note_of(spent: Spent) -> str:
    """A note for readers of the record."""
    unknown = "" if spent.cpu_s is not None else "; the CPU time of a sitting that was killed is not known"
    return f"interrupted and resumed: {spent.sittings} sittings; times are their sums, peaks the largest{unknown}"
