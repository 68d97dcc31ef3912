"""Booking.com WSDM WebTour 2021: predict the final city of a trip."""

from pathlib import Path

from buzzer.datasets.booking.generator import generate
from buzzer.datasets.booking.metric import score, write_submission
from buzzer.datasets.booking.reader import check, convert

NAME = "booking"

__all__ = ["NAME", "card", "check", "convert", "generate", "score", "write_submission"]


def card() -> str:
    """The data set's card: schema, terms, where to get it, how the generator works."""
    return (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
