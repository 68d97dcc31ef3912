"""How much of a phase of `fit` is done. A task reports it, and the harness shows it with the time that is left.

Loops nest: an epoch is a part of its network, and a network is a part of the phase. Only a fit has a listener, so a prediction that
shares code with a fit reports nothing.
"""

from collections.abc import Callable, Iterator, Sequence
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


def over(items: Sequence[T]) -> Iterator[T]:
    """The items. While one is worked on, it is the innermost part. All parts count the same."""
    global _part
    outer = _part
    try:
        for number, item in enumerate(items):
            _part = Part(outer.start + outer.length * number / len(items), outer.length / len(items))
            yield item
            report(1.0)
    finally:
        _part = outer
