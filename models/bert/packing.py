"""Packing: sentences of different lengths in one row of tokens, so that no time is spent on padding.

Linear layers and norms process each token once, and a block-diagonal mask keeps attention inside a sentence, as in Effective
Transformers, ByteTransformer (Zhai et al., IPDPS 2023) and MLPerf BERT submissions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from buzzer.engine.fused.spec import EncoderSpec
from buzzer.models.bert.encoder import Bert

Ids = npt.NDArray[np.int64]


class Packed(nn.Module):
    """An encoder for packed rows. It shares the weights of `bert`."""

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        """Hidden states [rows, tokens, hidden_size] of inputs int64 [rows, tokens].

        positions: position of each token in its sentence. segments: number of its sentence from 1, 0 for padding.
        """
        bert = self.bert
        x = bert.embedded(input_ids, positions)
        return bert.through(x, (segments[:, None, :, None] == segments[:, None, None, :]))

    def encoder_spec(self) -> EncoderSpec:
        """The parts, for the fused backend."""
        return replace(self.bert.encoder_spec(), inputs=("ids", "positions", "segments"))


def buckets(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """For each row the numbers of its sentences, with at most `tokens` tokens in total: first fit, the longest sentences first.

    A sentence of more than `tokens` tokens gets its own row.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for index in np.argsort([-n for n in lengths], kind="stable").tolist():
        fits = next((i for i, left in enumerate(free) if left >= lengths[index]), None)
        if fits is None:
            rows.append([])
            free.append(max(tokens, lengths[index]))
            fits = len(rows) - 1
        rows[fits].append(index)
        free[fits] -= lengths[index]
    yield from rows


def pack(ids: Sequence[Sequence[int]], multiple: int = 8) -> dict[str, Ids]:
    """One packed row: `input_ids`, `positions` and `segments`, int64 [1, tokens]; the length is rounded up to `multiple`."""
    length = -(-sum(len(x) for x in ids) // multiple) * multiple
    row = {name: np.zeros((1, length), dtype=np.int64) for name in ("input_ids", "positions", "segments")}
    at = 0
    for number, x in enumerate(ids, 1):
        part = slice(at, at + len(x))
        row["input_ids"][0, part] = x
        row["positions"][0, part] = np.arange(len(x))
        row["segments"][0, part] = number
        at += len(x)
    return row
