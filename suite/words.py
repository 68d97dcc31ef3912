"""Figures in words."""


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1: 1 run, 2 runs."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
