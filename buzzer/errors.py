"""The errors that all packages raise. The message says what happened, the `hint` what to do."""

import errno
from collections.abc import Iterable
from difflib import get_close_matches


class BuzzerError(Exception):
    """A problem that the user can solve. It is shown as one message and one `hint:` line, without a traceback."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # which Python and notebooks show below the message

    def __reduce__(self) -> tuple[type["BuzzerError"], tuple[str, str]]:
        return type(self), (self.message, self.hint)


class UsageError(BuzzerError):
    """A wrong name, key, flag or value; exit code 2."""


class DataError(BuzzerError):
    """Input data that are missing, incomplete or not in the documented schema; exit code 2."""


class UnsupportedError(BuzzerError):
    """This machine or installation lacks what is needed (device, library, precision); outcome `unsupported`."""


def disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk has no space left. Polars sets no errno."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in `known`. The hint suggests the nearest known name.

    >>> unknown_name("engine", "pandsa", ["pandas", "polars"]).hint
    'did you mean pandas? known: pandas, polars'
    """
    names = sorted({*known} - {""})
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}? " if near else ""
    return UsageError(f"unknown {kind} {name!r}", f"{guess}known: {', '.join(names)}")


def brief(value: object) -> str:
    """A wrong value for a message: as Python writes it, or its type if that is long.

    >>> brief("results"), brief(list(range(100)))
    ("'results'", 'a list')
    """
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def first_line(message: object) -> str:
    """The first 200 characters of the first line of a library's message: some contain whole graphs, or bytes of the file."""
    lines = (line.strip()[:200] for line in str(message).splitlines() if line.strip())
    return next(lines, type(message).__name__)
