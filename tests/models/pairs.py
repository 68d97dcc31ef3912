"""Pairs of engine and backend for tests of whole predictions.

Networks and trees get the same arrays from every engine, so each engine is paired with one backend, and each backend with one engine.
"""

from collections.abc import Iterable

from buzzer.engine import frames


def each_once(backends: Iterable[str]) -> list[tuple[str, str]]:
    """Every engine with torch_eager, and every other backend with Polars."""
    engines = [(engine, "torch_eager") for engine in sorted(frames.ENGINES)]
    return [*engines, *(("polars", backend) for backend in backends if backend != "torch_eager")]
