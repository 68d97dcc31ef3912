"""Packed batches: the attended tokens side by side, each token with the bounds of its sequence."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from buzzer.engine.infer.session import Array
from buzzer.errors import UsageError


@dataclass(frozen=True)
class Tokens:
    """The attended tokens of a batch."""

    shape: tuple[int, ...]  # of the batch, [rows, columns]
    places: Array  # int64 [tokens], flat index of each token in the batch, ascending
    ids: Array  # int32 [3, tokens]: word, position and type
    starts: Array  # int32 [sequences + 1]: first token of each sequence, and the number of tokens

    @property
    def sequences(self) -> int:
        """The number of sequences."""
        return len(self.starts) - 1

    def write(self, out: Array, tokens: int) -> None:
        """Fill an int32 buffer that has the layout of `lowering.Inputs`. tokens: the number of tokens of the program.

        Padding tokens attend to themselves only; padding sequences are empty.
        """
        count = len(self.places)
        ids, spans = out[: 3 * tokens].reshape(3, tokens), out[3 * tokens : 5 * tokens].reshape(2, tokens)
        ids[:, :count], ids[:, count:] = self.ids, 0
        lengths = np.diff(self.starts)
        spans[0, :count], spans[1, :count] = (
            np.repeat(self.starts[:-1], lengths),
            np.repeat(self.starts[1:], lengths),
        )
        spans[0, count:], spans[1, count:] = np.arange(count, tokens), np.arange(count, tokens) + 1
        starts = out[5 * tokens :]
        starts[: len(self.starts)], starts[len(self.starts) :] = self.starts, self.starts[-1]


def bucket(count: int, least: int) -> int:
    """The bucket size for `count`: a power of two, or three quarters of one, so that at most a third of it is padding.

    >>> [bucket(n, 16) for n in (0, 16, 17, 25, 48, 49, 128, 200)]
    [16, 16, 24, 32, 48, 64, 128, 256]
    """
    power = max(least, 1 << max(count - 1, 0).bit_length())
    return power * 3 // 4 if power > least and count <= power * 3 // 4 else power


def pack(roles: Mapping[str, Array], words: int, positions: int, types: int) -> Tokens:
    """The attended tokens of a batch.

    roles: role of an input (see `EncoderSpec.inputs`) -> its array.  words, positions, types: number of rows of each
    embedding table. Raises UsageError for an id outside its table, or a segment that is not contiguous.
    """
    ids = roles["ids"]
    kept = roles["segments"] != 0 if "segments" in roles else roles["mask"] != 0
    places = np.flatnonzero(kept)
    rows, columns = np.divmod(places, ids.shape[1])
    at = roles["positions"].ravel()[places] if "positions" in roles else columns
    kinds = roles["types"].ravel()[places] if "types" in roles else np.zeros_like(places)
    packed = np.stack([ids.ravel()[places], at, kinds]).astype(np.int32)
    for name, values, size in zip(
        ("token id", "position", "token type"), packed, (words, positions, types), strict=True
    ):
        if len(values) and not 0 <= values.min() <= values.max() < size:
            raise UsageError(f"a {name} is outside 0 to {size - 1}")
    starts = segment_starts(roles["segments"], places, rows) if "segments" in roles else row_starts(kept)
    return Tokens(ids.shape, places, packed, starts.astype(np.int32))


def row_starts(kept: Array) -> Array:
    """The starts of the sequences if each row is one sequence. kept: bool [rows, columns], the attended tokens."""
    return np.concatenate([[0], np.cumsum(kept.sum(1))])


def segment_starts(segments: Array, places: Array, rows: Array) -> Array:
    """The starts of the sequences if each segment of a row is one sequence. Raises UsageError for a segment that is not contiguous."""
    numbers = segments.ravel()[places]
    keys = np.stack([rows, numbers])
    changed = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(0)) + 1
    starts = np.concatenate([[0], changed, [len(places)]]) if len(places) else np.zeros(1, dtype=np.int64)
    if len(np.unique(keys, axis=1).T) != len(starts) - 1:
        raise UsageError("a segment is not contiguous", "put its tokens side by side")
    return starts
