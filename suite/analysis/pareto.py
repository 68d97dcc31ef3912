"""The Pareto front of points that have a cost and a value."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def front(items: Iterable[T], cost: Callable[[T], float], value: Callable[[T], float]) -> list[T]:
    """The items for which no other item is at least as good in both cost and value, by ascending cost.

    >>> front([(1, 5), (2, 5), (3, 9), (4, 8)], cost=lambda p: p[0], value=lambda p: p[1])
    [(1, 5), (3, 9)]
    """
    best: list[T] = []
    for item in sorted(items, key=lambda x: (cost(x), -value(x))):
        if not best or value(item) > value(best[-1]):
            best.append(item)
    return best
