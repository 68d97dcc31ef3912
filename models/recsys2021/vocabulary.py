"""The vocabulary of the tweets' tokens, bert-base-multilingual-cased: one word piece for each id; "##" continues a word.

It is not shipped. The parameter `vocabulary` names its file; without one, pieces are generated. The decoded text of a tweet is
`" ".join(pieces).replace(" ##", "")`, without [CLS], [SEP], [PAD] and [MASK], and with one character for [UNK] (an emoji). It is never made: what is
counted in it is a sum over its pieces (`pieces`).
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from buzzer.engine.frames.base import Pieces
from buzzer.errors import DataError

SIZE = 119_547
CONTINUATION = "##"
UNKNOWN, MARKERS = "[UNK]", ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
LINE_BREAKS = "¶\n"  # the organisers wrote ¶ for the line breaks of a tweet
LONGEST_PIECE = 255  # characters; amounts are stored as bytes
HINT = "use vocab.txt of bert-base-multilingual-cased, one word piece a line"
# Pieces at their true ids, in generated vocabularies: markers, the printable characters of ASCII, and RT.
TRUE = {0: "[PAD]", 100: UNKNOWN, 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 56_898: "RT"} | {
    73 + ord(mark): mark for mark in map(chr, range(ord("!"), ord("~") + 1))
}
LETTERS = "etaoinsrhdlucmfywgpbvkxqjzäéñдикам"


def generated_piece(token: int) -> str:
    """A piece that depends only on the id: one to eight letters, a third of the pieces continue a word, a fifth begin with a capital, one in
    a thousand is a line break."""
    if token in TRUE:
        return TRUE[token]
    mixed = token * 2_654_435_761 % 2**32  # multiplicative hashing, as fitting.MIX
    kind, mixed = mixed % 1000, mixed // 1000
    if kind == 0:
        return LINE_BREAKS[0]
    letters = "".join(LETTERS[(mixed >> 3 * at) % len(LETTERS)] for at in range(1 + mixed % 8))
    if kind < 333:
        return CONTINUATION + letters
    return letters.capitalize() if kind < 533 else letters


@cache
def read(path: str) -> tuple[str, ...]:
    """The pieces of a file, or generated pieces for "". Raises DataError for a file that cannot be read or is no such vocabulary."""
    if not path:
        return tuple(map(generated_piece, range(SIZE)))
    try:
        lines = tuple(Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"vocabulary {path}: {error}", HINT) from error
    if len(lines) != SIZE:
        raise DataError(f"vocabulary {path}: {len(lines):,} lines, not {SIZE:,}", HINT)
    for token, piece in enumerate(lines):
        if len(piece) > LONGEST_PIECE:
            message = f"vocabulary {path}: line {token + 1:,} has {len(piece):,} characters, more than {LONGEST_PIECE}"
            raise DataError(message, HINT)
    for token, piece in TRUE.items():
        if lines[token] != piece:
            raise DataError(f"vocabulary {path}: line {token + 1:,} is {lines[token]!r}, not {piece!r}", HINT)
    return lines


def describe(path: str) -> str:
    """Where the vocabulary is from, for the record."""
    return f"vocabulary: {path}" if path else "vocabulary: generated"


def of_word(piece: str) -> str:
    """The characters that a piece adds to a word: empty for markers."""
    if piece in MARKERS:
        return ""
    return "\ufffd" if piece == UNKNOWN else piece.removeprefix(CONTINUATION)


def starts_word(piece: str) -> bool:
    """Whether a piece begins a word of the decoded text."""
    return not piece.startswith(CONTINUATION) and piece not in MARKERS


def capitals(word: str) -> int:
    """The number of capital letters."""
    return 0 if word.islower() else sum(map(str.isupper, word))


# What is counted in a text -> how much of it a piece has, from `of_word` and `starts_word`.
AMOUNTS: dict[str, Callable[[str, bool], int]] = {
    "words": lambda word, starts: starts,
    "characters": lambda word, starts: len(word),
    "capital_words": lambda word, starts: starts and word[:1].isupper(),
    "capital_letters": lambda word, starts: capitals(word),
    "line_breaks": lambda word, starts: sum(map(word.count, LINE_BREAKS)),
    "retweet_marks": lambda word, starts: starts and word.lower() == "rt",
}


@cache
def pieces(path: str) -> Pieces:
    """The pieces of `read` in the form of the engines."""
    all_pieces = read(path)
    words, starts = list(map(of_word, all_pieces)), list(map(starts_word, all_pieces))
    amounts = {name: list(map(amount, words, starts)) for name, amount in AMOUNTS.items()}
    return Pieces(
        np.array([piece.startswith(CONTINUATION) for piece in all_pieces]),
        {name: np.array(values, dtype=np.uint8) for name, values in amounts.items()},
    )


def save(file: Path, path: str) -> None:
    """Write the pieces of a vocabulary as uint8 [1 + amounts, pieces], so that a prediction does not count their characters again."""
    counted = pieces(path)
    np.save(
        file, np.stack([counted.continues.astype(np.uint8), *(counted.amounts[name] for name in AMOUNTS)])
    )


def saved(file: Path) -> Pieces:
    """The pieces that `save` wrote."""
    continues, *amounts = np.load(file)
    return Pieces(continues.astype(bool), dict(zip(AMOUNTS, amounts, strict=True)))
