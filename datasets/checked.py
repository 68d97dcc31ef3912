"""Checked data sets. The result of a check is cached, so that unchanged files are not read again in every run."""

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

from pydantic import BaseModel, ConfigDict, ValidationError

from buzzer import caches, locks
from buzzer.datasets.contract import Progress
from buzzer.datasets.files import Files, new_file
from buzzer.errors import DataError

Check = Callable[[Path, Progress], Files]
# Two changes of a file within one tick of the file system's clock may leave its times equal.
TICK_NS, COARSE_TICK_NS = 100_000_000, 2_000_000_000


class Verdict(BaseModel):
    """The result of a check, and the state of the files that it belongs to."""

    model_config = ConfigDict(strict=True, extra="forbid")

    state: str
    fingerprint: str
    rows: dict[str, int]
    facts: dict[str, int | str]
    source: str
    scale: float
    train_scale: float | None
    notes: list[str]


def given_or_generated(
    source: Path | None,
    folder: Path,
    generate: Callable[[Path], None],
    check: Check,
    cache: Path,
    progress: Progress,
) -> Files:
    """The checked files of the folder `source`; if it is None, the files that `generate(folder)` writes in the cache."""
    if source is not None:
        return checked(check, source, cache, progress)
    return generated(folder, generate, check, cache, progress)


def generated(
    folder: Path, generate: Callable[[Path], None], check: Check, cache: Path, progress: Progress
) -> Files:
    """The files that `generate(folder)` writes in the cache, checked. One process writes them, and other processes wait.

    Files that were changed afterwards are generated again, with a line on stderr.
    """
    if folder.is_dir():
        with suppress(DataError, OSError):
            return check_unchanged(folder, check, cache, progress)
    with locks.held(folder.with_name(f"{folder.name}.lock"), lambda message: progress(0.0, message)):
        if os.path.lexists(folder):
            try:  # another process may have written them in the meantime
                return check_unchanged(folder, check, cache, progress)
            except (DataError, OSError) as error:
                caches.discard(folder, f"damaged: {getattr(error, 'message', error)}")
        for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)  # left by a process that was killed
        generate(folder)
        files = checked(check, folder, cache, progress)
        with suppress(OSError), new_file(hash_path(folder)) as partial:
            partial.write_text(content_hash(files), encoding="utf-8")
        return files


def check_unchanged(folder: Path, check: Check, cache: Path, progress: Progress) -> Files:
    """The checked files. Raises DataError or OSError if they differ from the generated files."""
    files, expected = checked(check, folder, cache, progress), hash_path(folder)
    if expected.exists() and expected.read_text(encoding="utf-8", errors="replace") != content_hash(files):
        raise DataError("the files differ from the generated ones")
    return files


def hash_path(folder: Path) -> Path:
    """The file next to a folder of generated files that contains their hash."""
    return folder.with_name(f"{folder.name}.sha256")


def content_hash(files: Files) -> str:
    """The sha256 over the fingerprint of the files and the content of generator.json."""
    facts = files.folder / "generator.json"
    content = facts.read_bytes() if facts.is_file() else b""
    return hashlib.sha256(files.fingerprint.encode() + content).hexdigest()


def checked(check: Check, folder: Path, cache: Path, progress: Progress) -> Files:
    """The result of `check(folder, progress)`, or of an earlier check of the same files, from `cache`.

    The cached verdict is used if every file of the folder still has its path, size, inode and times, and the check its source
    code. A verdict is not cached if a file changed while it was read or just before, as such a change may leave its times equal.
    Raises what `check` raises.
    """
    verdict_path = cache / "checks" / f"{digest([check.__module__, str(folder.resolve())])[:32]}.json"
    state, settled = state_of(check, folder)
    if (cached := read_verdict(verdict_path)) is not None and cached.state == state:
        fields = cached.model_dump(exclude={"state", "notes"})
        return Files(folder, **fields, notes=tuple(cached.notes))
    files = check(folder, progress)
    if settled and state_of(check, folder)[0] == state:
        verdict = Verdict(
            state=state,
            fingerprint=files.fingerprint,
            rows=dict(files.rows),
            facts=dict(files.facts),
            source=files.source,
            scale=files.scale,
            train_scale=files.train_scale,
            notes=list(files.notes),
        )
        with suppress(OSError, DataError):  # without a cache the check is only slower
            verdict_path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(verdict_path) as partial:
                partial.write_text(verdict.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return files


def read_verdict(path: Path) -> Verdict | None:
    """A cached verdict; None if there is no readable one."""
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def state_of(check: Check, folder: Path) -> tuple[str, bool]:
    """A hash of everything that a verdict depends on, and whether every later change of a file would change the hash."""
    now, settled = time.time_ns(), True
    code = Path(str(sys.modules[check.__module__].__file__)).parent
    sources = [*sorted(code.glob("*.py")), *sorted(Path(__file__).parent.glob("*.py"))]
    facts: list[object] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):  # data sets have no deeper folders
        with suppress(OSError):
            s = path.stat()
            facts.append([str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev])
            whole = not (s.st_mtime_ns % 1_000_000_000 or s.st_ctime_ns % 1_000_000_000)
            settled &= max(s.st_mtime_ns, s.st_ctime_ns) < now - (COARSE_TICK_NS if whole else TICK_NS)
    return digest(facts), settled


def digest(facts: object) -> str:
    """The sha256 of a value written as JSON."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
