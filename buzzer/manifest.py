"""The manifest of a cache folder: size and sha256 of each file. It reveals truncated, changed, missing and added files."""

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from buzzer import caches

NAME = ".manifest.json"
CTIME = 2  # place in the state of a file
State = Mapping[str, tuple[int, ...]]  # file name -> size, times and inode; any write changes them


class Entry(BaseModel):
    """Size and sha256 of one file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """All files of a folder except the manifest itself."""

    model_config = ConfigDict(strict=True, extra="forbid")

    files: dict[str, Entry]


def seal(folder: Path, without: Collection[str] = ()) -> None:
    """Write the manifest of a complete folder. without: files that are deleted before the folder is used. Raises OSError."""
    (folder / NAME).unlink(missing_ok=True)
    files = {
        name: Entry(bytes=facts[0], sha256=digest(folder / name, facts))
        for name, facts in state(folder).items()
        if name not in without
    }
    (folder / NAME).write_text(Manifest(files=files).model_dump_json(indent=1) + "\n", encoding="utf-8")


def save(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` create and fill a folder, completely or not at all, and add a manifest. If another process or thread has made the folder
    first, its folder stays. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        aside = Path(temporary) / folder.name
        write(aside)
        seal(aside)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def is_whole(folder: Path) -> bool:
    """Whether a folder exists and is undamaged. A damaged folder is removed with a notice."""
    found = problem(folder)
    if found and os.path.lexists(folder):
        caches.discard(folder, found)
    return not found


def problem(folder: Path) -> str:
    """How a folder differs from its manifest; "" if it does not. A file is hashed once per process, unless it changes."""
    if not folder.is_dir():
        return "not a folder" if folder.exists() else "does not exist"
    try:
        sealed = Manifest.model_validate_json((folder / NAME).read_bytes()).files
        files = {name: facts for name, facts in state(folder).items() if name != NAME}
        problems = (problem_of(folder / name, files.get(name), entry) for name, entry in sealed.items())
        first = next(((name, text) for name, text in zip(sealed, problems, strict=True) if text), None)
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read: {error.strerror}"
    except ValidationError:
        return f"{NAME} is damaged"
    added = sorted(files.keys() - sealed.keys())
    if first is None and added:
        first = added[0], "was added"
    return " ".join(first or ())


def problem_of(path: Path, facts: tuple[int, ...] | None, entry: Entry) -> str:
    """How a file differs from its entry; "" if it does not. `facts` is None for a file that does not exist. Raises OSError."""
    if facts is None:
        return "is missing"
    if facts[0] != entry.bytes:
        return f"has {facts[0]} bytes instead of {entry.bytes}"
    return "" if digest(path, facts) == entry.sha256 else "has changed contents"


def state(folder: Path) -> State:
    """The state of every file below the folder, by its path in the folder; empty if the folder does not exist."""
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir()) if folder.is_dir() else []
    return {str(path.relative_to(folder)): facts_of(path) for path in paths}


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file below the folder, by its path in the folder."""
    return {name: digest(folder / name, facts) for name, facts in state(folder).items()}


def changes(before: State, now: State) -> list[str]:
    """Names of the files that were written, added or removed between two states."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def rewritten(folder: Path, before: State, sealed: bytes) -> list[str]:
    """Names of the files of a sealed folder that were written, added or removed since `before`. sealed: its manifest file, read then.

    A new hard link or a change of permissions sets only a file's ctime, as does a program that restores the mtime of a file it has
    written. The contents of such a file are compared with the manifest.
    """
    now, files = state(folder), Manifest.model_validate_json(sealed).files

    def is_same(name: str) -> bool:
        old, new = before.get(name, ()), now.get(name, ())
        if old[:CTIME] + old[CTIME + 1 :] != new[:CTIME] + new[CTIME + 1 :]:
            return False
        if name == NAME:
            return (folder / NAME).read_bytes() == sealed
        return name in files and digest(folder / name, new) == files[name].sha256

    return [name for name in changes(before, now) if not is_same(name)]


def facts_of(path: Path) -> tuple[int, ...]:
    """Size, times and inode of a file; for a broken link, of the link itself."""
    s = path.stat() if path.exists() else path.lstat()
    return s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev


@functools.lru_cache(maxsize=10_000)
def digest(path: Path, facts: tuple[int, ...]) -> str:
    """The sha256 of a file's contents. The file is read again only if its `facts` have changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
