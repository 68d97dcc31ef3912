"""Keeps the program running if a standard stream is closed, has no reader or cannot be written."""

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


class Lossy:
    """A stream of messages. Once its reader is gone or its disk is full, all further text is discarded."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text. Returns the number of characters; never raises OSError."""
        try:
            return self._stream.write(text)
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        """Flush; never raises OSError."""
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def silence(stream: TextIO) -> None:
    """Discard the buffered text of a stream and all further text."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    with suppress(OSError):
        stream.flush()


def prepare() -> None:
    """Prepare the three streams.

    A stream that the caller closed (`2>&-`) is opened on /dev/null. Otherwise the next file that is opened would get its number, and libraries
    would print into that file. Text for a stderr that cannot be written is discarded. stdout is UTF-8, like all files, whatever the locale.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)  # None if it was closed
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    sys.stderr = cast(TextIO, Lossy(sys.stderr or os.fdopen(2, "w", closefd=False)))


def flush_stdout() -> None:
    """Write the buffered text. Raises OSError if that fails; the interpreter then does not try again at exit."""
    try:
        sys.stdout.flush()
    except OSError as error:
        silence(sys.stdout)
        raise OSError(error.errno, error.strerror, "standard output") from error
