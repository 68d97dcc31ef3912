"""SIGIR eCom 2021 data challenge (Coveo): the next products of a shop session, and whether its cart is bought."""

from buzzer.datasets.sigir_ecom.generator import generate
from buzzer.datasets.sigir_ecom.metric import score, write_submission
from buzzer.datasets.sigir_ecom.reader import check, convert, split

NAME = "sigir_ecom"

__all__ = ["NAME", "check", "convert", "generate", "score", "split", "write_submission"]
