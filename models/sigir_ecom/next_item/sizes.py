"""The sizes of a network. Not in networks.py, which imports torch."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network's layers and tables."""

    products: int  # codes of products, 0 and 1 among them
    codes: int  # codes of products and pages
    length: int
    numbers: int
    categories: int
    vectors: int
    dim: int
    layers: int
    heads: int
    dropout: float
    smoothing: float
    item_dim: int  # of the table of products and pages
    scored: int  # codes that the head scores: `products` or `codes`
    mask: float  # share of a session's products that masked training hides in addition to the next one

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)
