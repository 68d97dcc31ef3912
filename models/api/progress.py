"""How much of a phase of `fit` is done. A task reports it, and the harness shows it with the time that is left.

Parts nest: an epoch is a part of its network, and a network is a part of the phase. Only a fit has a listener, so a prediction that
shares code with a fit reports nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")
Listener = Callable[[float], None]  # share of the running phase, 0 to 1


class Part(NamedTuple):
    """A part of the phase: where it begins and how long it is, as shares of the phase."""

    start: float
    length: float


WHOLE = Part(0.0, 1.0)
_part, _listener = WHOLE, None


def listen(listener: Listener | None) -> None:
    """Set the function that gets all reports of this process; None for none."""
    global _listener, _part
    _listener, _part = listener, WHOLE


def report(share: float) -> None:
    """Report that a share (0 to 1) of the innermost part, or of the phase outside all parts, is done."""
    if _listener is not None:
        _listener(_part.start + _part.length * share)


@contextmanager
def part(start: float, end: float) -> Iterator[None]:
    """Make a part of the innermost part, from one share (0 to 1) of it to another, the innermost. A block that ends without an error is
    reported as done."""
    global _part
    outer = _part
    _part = Part(outer.start + outer.length * start, outer.length * (end - start))
    try:
        yield
        report(1.0)
    finally:
        _part = outer


def over(items: Sequence[T], sizes: Sequence[float] = ()) -> Iterator[T]:
    """The items. While one is worked on, it is the innermost part. sizes: how much work each is, in any unit; by default all the same."""
    ends = [*accumulate(sizes or [1] * len(items))]
    start = 0.0
    for item, end in zip(items, ends, strict=True):
        share = end / (ends[-1] or 1)
        with part(start, share):
            yield item
        start = share


def over_pieces(pieces: Iterable[Path], total: int) -> Iterator[Path]:
    """Files that are pieces of `total` bytes. Reports the share of the bytes that are done; nothing if `total` is 0."""
    done = 0
    for piece in pieces:
        done += piece.stat().st_size  # before it is worked on, because its reader may delete it
        yield piece
        if total:
            report(min(done / total, 1.0))
