"""Booking.com WSDM WebTour 2021: predict the last city of a trip."""

from buzzer.datasets.booking.generator import generate
from buzzer.datasets.booking.metric import score, write_submission
from buzzer.datasets.booking.reader import check, convert

NAME = "booking"

__all__ = ["NAME", "check", "convert", "generate", "score", "write_submission"]
