"""From sentences to padded batches of token ids, by the reference tokenizer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from buzzer.errors import DataError

Ids = npt.NDArray[np.int64]


def load(folder: Path, longest: int) -> Tokenizer:
    """The model's own tokenizer, cutting sentences after `longest` tokens; padding is left to `pad`.

    Raises DataError for a tokenizer.json that is none.
    """
    file = folder / "tokenizer.json"
    with blamed(f"{file}: not a tokenizer"):
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.enable_truncation(longest)
        tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[list[int]]:
    """Token ids of each sentence. Raises DataError where the tokenizer cannot, or gives none."""
    with blamed("the tokenizer cannot encode the sentences"):
        ids = [encoding.ids for encoding in tokenizer.encode_batch(list(sentences))]
    if not all(ids):
        raise DataError("the tokenizer gives a sentence no token", "is tokenizer.json that of the model?")
    return ids


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Makes a DataError of what the library raises: bare exceptions, and panics, which are none."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise DataError(f"{what}: {str(error)[:200]}") from error


def batches(ids: Sequence[Sequence[int]], size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers of batches of at most `size` sentences of like length, the shortest first."""
    order = np.argsort([len(x) for x in ids], kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def pad(ids: Sequence[Sequence[int]], multiple: int = 8) -> dict[str, Ids]:
    """`input_ids` and `attention_mask` [batch, sequence]; the longest fixes the length, rounded up to `multiple`."""
    length = -(-max(len(x) for x in ids) // multiple) * multiple
    tokens, mask = np.zeros((len(ids), length), dtype=np.int64), np.zeros((len(ids), length), dtype=np.int64)
    for row, x in enumerate(ids):
        tokens[row, : len(x)] = x
        mask[row, : len(x)] = 1
    return {"input_ids": tokens, "attention_mask": mask}
