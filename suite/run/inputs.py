"""What a timed run reads: in the page cache before every run alike, and unchanged after it."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

SHARE = 0.5  # of the memory that is available, which the inputs may fill
BLOCK = 1 << 22
State = dict[Path, tuple[int, int, int]]  # size, times of the last change of contents and of anything


def state(folders: Iterable[Path]) -> State:
    """The files of a run's input folders, as they are."""
    found = {}
    for folder in folders:
        # No data set and no fit has deeper folders.
        for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
            with suppress(OSError):
                told = path.stat()
                if path.is_file():
                    found[path] = (told.st_size, told.st_mtime_ns, told.st_ctime_ns)
    return found


def warm(files: State) -> bool:
    """Read every file through, so that no run finds its inputs colder than another. False where they are too large for that."""
    if sum(size for size, *_ in files.values()) > SHARE * psutil.virtual_memory().available:
        return False
    block = bytearray(BLOCK)
    for path in files:
        with suppress(OSError), path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    return True


def changed(before: State, folders: Sequence[Path]) -> list[str]:
    """Names of the files that were changed, removed or added since."""
    now = state(folders)
    different = {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}
    return sorted(f"{path.parent.name}/{path.name}" for path in different)
