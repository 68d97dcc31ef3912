"""Standard streams without a reader, or that cannot be written, do not end the program before it is done."""

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


class Unheard:
    """A stream of messages. Once its reader is gone or its disk is full, what is written to it is discarded."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write; the number of characters taken."""
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
    """Discard what is buffered for a stream, and all that follows."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    with suppress(OSError):
        stream.flush()


def prepare() -> None:
    """Prepare the three streams.

    One that the caller closed (`2>&-`) is opened on /dev/null: else the next file that is opened would get its number, and with it what libraries
    print. A stderr that cannot be written is discarded. stdout is UTF-8, as files are, whatever the locale.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)  # None where it was closed
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    sys.stderr = cast(TextIO, Unheard(sys.stderr or os.fdopen(2, "w", closefd=False)))


def flush_stdout() -> None:
    """Write what is buffered. Raises OSError where that fails; the interpreter does not try again at its exit."""
    try:
        sys.stdout.flush()
    except OSError as error:
        silence(sys.stdout)
        raise OSError(error.errno, error.strerror, "standard output") from error
