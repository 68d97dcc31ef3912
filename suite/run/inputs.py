"""The input files of a timed run. They are read into the page cache before the run, and checked for changes after it."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

SHARE = 0.5  # largest share of the available memory that the inputs may fill
BLOCK = 1 << 22
State = dict[Path, tuple[int, int, int]]  # path -> size, mtime, ctime


def state(folders: Iterable[Path]) -> State:
    """Size and times of the files in a run's input folders and in their direct subfolders."""
    files = {}
    for folder in folders:
        for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
            with suppress(OSError):
                stat = path.stat()
                if path.is_file():
                    files[path] = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return files


def warm(files: State) -> bool:
    """Read every file, so that all runs have their inputs in the page cache. Returns False, and reads nothing, if they are too large."""
    if sum(size for size, *_ in files.values()) > SHARE * psutil.virtual_memory().available:
        return False
    block = bytearray(BLOCK)
    for path in files:
        with suppress(OSError), path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    return True


def only_ctimes(before: State, folders: Sequence[Path]) -> bool:
    """Whether all files are there that were there `before`, with their sizes and mtimes. A new hard link changes only a file's ctime."""
    now = state(folders)
    return {p: facts[:2] for p, facts in before.items()} == {p: facts[:2] for p, facts in now.items()}


def changed(before: State, folders: Sequence[Path]) -> list[str]:
    """Names of the files that were changed, removed or added since `before`."""
    now = state(folders)
    different = {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}
    return sorted(f"{path.parent.name}/{path.name}" for path in different)
