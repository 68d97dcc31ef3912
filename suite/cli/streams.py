"""Standard streams that nobody reads, or that cannot be written, do not end the program on the way."""

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


class Unheard:
    """A stream of messages. Once its reader is gone or its disk is full, what is written to it goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def silence(stream: TextIO) -> None:
    """Let what waits to be written to a stream, and all that follows, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    with suppress(OSError):
        stream.flush()


def prepare() -> None:
    """Open what a caller has closed (`2>&-`), as the next file that is opened would get its number and with it what libraries print;
    go on without stderr where it cannot be written; and write UTF-8 to stdout, as to files, whatever the locale."""
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
    """Write what waits. Raises OSError where that fails, once: the interpreter would try again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        silence(sys.stdout)
        raise OSError(error.errno, error.strerror, "standard output") from error
