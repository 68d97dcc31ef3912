"""Locks between processes that share a cache folder, so that only one process at a time writes a cache entry or times a run."""

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

POLL_S = 0.2  # between two attempts of a waiting process
Poll = Callable[[str], None]  # called with a message that says what the process waits for


@contextmanager
def held(path: Path, poll: Poll) -> Iterator[None]:
    """Hold the lock file `path` exclusively. The system releases it when the process ends.

    While another process holds it, a line on stderr names that process, and `poll(message)` is called every POLL_S seconds. If `poll`
    raises an exception, the waiting ends. Raises DataError if the file cannot be locked.
    """
    with _open(path) as file:
        noticed = False
        while not _try_lock(file, path):
            message = f"waiting for {owner(path)}"
            if not noticed:
                caches.notice(f"{message}, which holds {path}")
            noticed = True
            poll(message)
            time.sleep(POLL_S)
        since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        with suppress(OSError):  # on a full disk, others cannot see who holds the lock
            _write_owner(file, f"process {os.getpid()} on {platform.node()}, since {since}")
        try:
            yield
        finally:
            with suppress(OSError):
                _write_owner(file, "")


def _open(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise _cannot_lock(path, error) from error


def _try_lock(file: IO[str], path: Path) -> bool:
    """Whether this process now holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _cannot_lock(path, error) from error
    return True


def _cannot_lock(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot lock {path}: {error.strerror}", f"set {caches.HOME} to another folder")


def owner(path: Path) -> str:
    """The process and host that hold the lock, as they wrote them into the file. Who has just taken the lock has POLL_S seconds for it."""
    with suppress(OSError):
        for pause_s in (0.0, POLL_S):
            time.sleep(pause_s)
            if text := path.read_text(encoding="utf-8", errors="replace").strip():
                return text
    return "another process"


def _write_owner(file: IO[str], text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()
