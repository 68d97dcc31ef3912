"""Token ids of sentences from the model's tokenizer, and padded batches of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from buzzer.errors import DataError

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """Sentences as token ids, with their classes int64 [rows]."""

    ids: Sequence[Sequence[int]]
    targets: Ids

    def batch(self, rows: Ids) -> tuple[dict[str, Ids], Ids]:
        """A padded batch of rows, and their classes."""
        return pad([self.ids[row] for row in rows], 4), self.targets[rows]


def load(folder: Path, longest: int) -> Tokenizer:
    """The tokenizer of a model folder. It truncates sentences to `longest` tokens and does not pad.

    Raises DataError for an invalid tokenizer.json.
    """
    file = folder / "tokenizer.json"
    with as_data_error(f"{file}: not a tokenizer"):
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.enable_truncation(longest)
        tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[list[int]]:
    """Token ids of each sentence. Raises DataError if the tokenizer fails, or returns no tokens for a sentence."""
    with as_data_error("the tokenizer cannot encode the sentences"):
        ids = [encoding.ids for encoding in tokenizer.encode_batch(list(sentences))]
    if not all(ids):
        raise DataError(
            "the tokenizer returns no tokens for a sentence", "does tokenizer.json belong to the model?"
        )
    return ids


def labelled(
    tokenizer: Tokenizer,
    splits: Mapping[str, Sequence[tuple[str, str]]],
    part: str,
    classes: Sequence[str],
) -> Labelled:
    """The sentences of a split of CLINC150, `train` or `val`, with its out-of-scope sentences."""
    entries = [*splits[part], *splits[f"oos_{part}"]]
    ids = encode(tokenizer, [sentence for sentence, _ in entries])
    return Labelled(ids, np.array([classes.index(label) for _, label in entries]))


@contextmanager
def as_data_error(problem: str) -> Iterator[None]:
    """Turns errors of the tokenizers library into a DataError: exceptions, and Rust panics, which are not of class Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise DataError(f"{problem}: {str(error)[:200]}") from error


def batches(ids: Sequence[Sequence[int]], size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers of batches of at most `size` sentences of similar length, the shortest first."""
    order = np.argsort([len(x) for x in ids], kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def pad(ids: Sequence[Sequence[int]], multiple: int = 8) -> dict[str, Ids]:
    """`input_ids` and `attention_mask`, int64 [batch, sequence]. The length of the longest sentence is rounded up to `multiple`."""
    length = -(-max(len(x) for x in ids) // multiple) * multiple
    tokens, mask = np.zeros((len(ids), length), dtype=np.int64), np.zeros((len(ids), length), dtype=np.int64)
    for row, x in enumerate(ids):
        tokens[row, : len(x)] = x
        mask[row, : len(x)] = 1
    return {"input_ids": tokens, "attention_mask": mask}
