"""Verdicts of checks, kept so that files that have not changed are not read again at every run."""

import glob
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from buzzer import caches, locks
from buzzer.datasets.files import Files, new_file
from buzzer.errors import DataError

Progress = Callable[[float, str], None]
Check = Callable[[Path, Progress], Files]
# A file that changes twice within a tick of its file system's clock may keep its times.
TICK_NS, COARSE_TICK_NS = 100_000_000, 2_000_000_000


class Verdict(BaseModel):
    """What a check found, and of which state of the files."""

    model_config = ConfigDict(strict=True, extra="forbid")

    state: str
    fingerprint: str
    rows: dict[str, int]
    facts: dict[str, Any]
    source: str
    scale: float
    notes: list[str]


def given_or_generated(
    source: Path | None,
    folder: Path,
    generate: Callable[[Path], None],
    check: Check,
    cache: Path,
    progress: Progress,
) -> Files:
    """The checked files of `source`; without one, those that `generate(folder)` makes in the cache."""
    if source is not None:
        return checked(check, source, cache, progress)
    return generated(folder, generate, check, cache, progress)


def generated(
    folder: Path, generate: Callable[[Path], None], check: Check, cache: Path, progress: Progress
) -> Files:
    """The files that `generate(folder)` makes in the cache, checked. One process makes them, others wait for it.

    Files that are no longer those that were made are made anew, with a line on stderr.
    """
    if folder.is_dir():
        with suppress(DataError, OSError):
            return intact(folder, check, cache, progress)
    with locks.held(folder.with_name(f"{folder.name}.lock"), lambda message: progress(0.0, message)):
        if os.path.lexists(folder):
            try:  # another process may have made them meanwhile
                return intact(folder, check, cache, progress)
            except (DataError, OSError) as error:
                caches.discard(folder, f"damaged: {getattr(error, 'message', error)}")
        for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
        generate(folder)
        found = checked(check, folder, cache, progress)
        with suppress(OSError), new_file(made_of(folder)) as aside:
            aside.write_text(print_of(found), encoding="utf-8")
        return found


def intact(folder: Path, check: Check, cache: Path, progress: Progress) -> Files:
    """The checked files. Raises DataError or OSError where they are not those that were made."""
    found, made = checked(check, folder, cache, progress), made_of(folder)
    if made.exists() and made.read_text(encoding="utf-8", errors="replace") != print_of(found):
        raise DataError("not the files that were made")
    return found


def made_of(folder: Path) -> Path:
    """The file beside generated ones that tells their hash."""
    return folder.with_name(f"{folder.name}.sha256")


def print_of(found: Files) -> str:
    """One hash of the data files and of what the generator says of them."""
    facts = found.folder / "generator.json"
    told = facts.read_bytes() if facts.is_file() else b""
    return hashlib.sha256(found.fingerprint.encode() + told).hexdigest()


def checked(check: Check, folder: Path, cache: Path, progress: Progress) -> Files:
    """What `check(folder, progress)` returns or raises; taken from `cache` where it was found good before and every file in
    the folder still has its path, size, inode and times, and the check its source code.

    A verdict is not kept where a file could have changed unseen: while it was read, or just before.
    """
    kept = cache / "checks" / f"{digest([check.__module__, str(folder.resolve())])[:32]}.json"
    state, settled = state_of(check, folder)
    if (known := read(kept)) is not None and known.state == state:
        fields = known.model_dump(exclude={"state", "notes"})
        return Files(folder, **fields, notes=tuple(known.notes))
    found = check(folder, progress)
    if settled and state_of(check, folder)[0] == state:
        verdict = Verdict(
            state=state,
            fingerprint=found.fingerprint,
            rows=dict(found.rows),
            facts=dict(found.facts),
            source=found.source,
            scale=found.scale,
            notes=list(found.notes),
        )
        with suppress(OSError, DataError):  # a cache that cannot be written costs time, no more
            kept.parent.mkdir(parents=True, exist_ok=True)
            with new_file(kept) as aside:
                aside.write_text(verdict.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return found


def read(path: Path) -> Verdict | None:
    """A kept verdict; None where there is none that can be read."""
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def state_of(check: Check, folder: Path) -> tuple[str, bool]:
    """A hash of all that the verdict depends on, and whether any later change of a file would change it."""
    now, settled = time.time_ns(), True
    code = Path(str(sys.modules[check.__module__].__file__)).parent
    sources = [*sorted(code.glob("*.py")), *sorted(Path(__file__).parent.glob("*.py"))]
    facts: list[Any] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):  # no data set has deeper folders
        with suppress(OSError):
            s = path.stat()
            facts.append([str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev])
            whole = not (s.st_mtime_ns % 1_000_000_000 or s.st_ctime_ns % 1_000_000_000)
            settled &= max(s.st_mtime_ns, s.st_ctime_ns) < now - (COARSE_TICK_NS if whole else TICK_NS)
    return digest(facts), settled


def digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
