"""84.51° Complete Journey: real grocery baskets, mapped into the schema of SIGIR eCom 2021."""

from buzzer.datasets.complete_journey.mapping import generate
from buzzer.datasets.sigir_ecom import check, convert, score, write_submission

NAME = "complete_journey"

__all__ = ["NAME", "check", "convert", "generate", "score", "write_submission"]
