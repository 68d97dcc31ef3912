"""A piece's rows as batches of a network. Rows with the same text share it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from buzzer.engine.frames.base import Array, on_host

# Multiplier of a polynomial hash (Knuth's MMIX generator, The Art of Computer Programming 2, section 3.3.4), and bits of it in a key.
MIX, BITS = 6_364_136_223_846_793_005, 48


@dataclass(frozen=True)
class Batch:
    """Rows of similar length of text. All arrays but `places` are on the device of the piece."""

    places: Array  # int64 [rows]: row numbers in the piece, on the host
    rows: Array  # the same
    features: Array  # float32 [rows, columns of the first stage]
    tokens: Array  # int32 [texts, length]: the different texts, as long as the longest, padded with 0
    text: Array  # int64 [rows]: the place of each row's text in `tokens`


class Batches:
    """The batches of a piece. Each iteration gives all of them.

    Rows are sorted by the length of their text, because the work grows with the longest text of a batch, and rows of one text follow
    each other.
    """

    def __init__(self, features: Array, tokens: Array, users: Array, size: int) -> None:
        """features: float32 [rows, columns of the first stage].  tokens: int32 [rows, length], padded with 0.  users: int64 [rows, 2], codes.
        size: the most rows of a batch."""
        self.features, self.tokens, self.users, self.size = features, tokens, users, size
        counts = lengths(tokens)
        self._order = np.argsort(text_keys(tokens, counts), kind="stable")
        self._places = on_host(self._order)
        self._longest = on_host(counts[self._order])

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._places)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self), self.size):
            rows = self._order[start : start + self.size]
            places = self._places[start : start + self.size]
            width = max(int(self._longest[start + len(places) - 1]), 1)
            tokens = self.tokens[:, :width][rows]
            new = np.pad(np.any(tokens[1:] != tokens[:-1], axis=1), (1, 0), constant_values=True)
            yield Batch(places, rows, self.features[rows], tokens[new], np.cumsum(new) - 1)


def lengths(tokens: Array) -> Array:
    """Tokens in each row, uint8 or wider [rows]."""
    return (tokens > 0).sum(axis=1, dtype=np.min_scalar_type(tokens.shape[1]))


def text_keys(tokens: Array, counts: Array) -> Array:
    """Keys int64 [rows] that sort rows by the number of tokens, and rows of equal length by a hash of the text.

    Rows of two texts with one hash may alternate. Then a batch has these texts more than once, and its results are the same.
    """
    hashes = tokens[:, 0].astype(np.int64)
    for column in range(1, tokens.shape[1]):
        hashes = hashes * MIX + tokens[:, column]
    return (counts.astype(np.int64) << BITS) | ((hashes >> 8) & ((1 << BITS) - 1))
