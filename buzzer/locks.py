"""Locks between processes that share the cache folder: who makes what is kept there, and whose run is timed."""

import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from buzzer import caches
from buzzer.errors import DataError

LOOK_S = 0.2  # how often a process that waits looks again
Look = Callable[[str], None]  # what it waits for


@contextmanager
def held(path: Path, look: Look) -> Iterator[None]:
    """Hold the lock file `path`, as the only process. The system frees it when its owner ends, however it ends.

    While another process holds it, a line on stderr names the owner and `look(message)` is called every LOOK_S; what it raises ends the
    waiting. Raises DataError where no lock can be made.
    """
    with opened(path) as file:
        said = False
        while not taken(file, path):
            message = f"waiting for {owner(path)}"
            if not said:
                caches.notice(f"{message}, which holds {path}")
            said = True
            look(message)
            time.sleep(LOOK_S)
        since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        with suppress(OSError):  # on a full disk the owner has no name
            sign(file, f"process {os.getpid()} on {platform.node()}, since {since}")
        try:
            yield
        finally:
            with suppress(OSError):
                sign(file, "")


def opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise cannot_lock(path, error) from error


def taken(file: IO[str], path: Path) -> bool:
    """Whether the lock is now this process's."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise cannot_lock(path, error) from error
    return True


def cannot_lock(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot lock {path}: {error.strerror}", f"set {caches.HOME} to another folder")


def owner(path: Path) -> str:
    """Process and host, as the owner wrote them."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    return "another process"


def sign(file: IO[str], text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()
