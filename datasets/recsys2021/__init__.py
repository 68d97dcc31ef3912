"""RecSys Challenge 2021 (Twitter): who replies to, retweets, quotes or likes which tweet."""

from buzzer.datasets.recsys2021.generator import generate
from buzzer.datasets.recsys2021.metric import (
    align,
    append_submission,
    read_submission,
    score,
    scores,
    write_submission,
)
from buzzer.datasets.recsys2021.reader import check, convert

NAME = "recsys2021"

__all__ = [
    "NAME",
    "align",
    "append_submission",
    "check",
    "convert",
    "generate",
    "read_submission",
    "score",
    "scores",
    "write_submission",
]
