"""The sizes of a network. Not in networks.py, which imports torch."""

from dataclasses import asdict, dataclass
from typing import Any

from buzzer.models.booking.features import FIRST_CITY


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network's layers and tables."""

    cities: int  # rows of the city table: FIRST_CITY special codes, then the classes
    countries: int
    context: tuple[int, ...]  # number of codes of each context column
    lags: int
    dim: int
    hidden: int
    layers: int
    heads: int
    dropout: float
    candidates: int  # cities that the GRU's second stage scores again

    @property
    def classes(self) -> int:
        """Cities that can be guessed."""
        return self.cities - FIRST_CITY

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)
