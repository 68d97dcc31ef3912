"""Answers to questions in SQuAD's format (Rajpurkar et al., EMNLP 2016), such as XQuAD's English file: windows, answers and scores.

Windows and answers are made as in BERT's run_squad.py (Devlin et al., section 4.2), scores as in SQuAD's evaluate-v1.1.py.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError
from tokenizers import Tokenizer

from buzzer.datasets.files import opened
from buzzer.engine.infer import Array
from buzzer.errors import DataError, UsageError
from buzzer.models.bert.tokenizer import as_data_error

STRIDE = 128  # tokens from the start of a window to the start of the next
QUESTION = 64  # longest question in tokens; more are cut off
BEST, LONGEST = 20, 30  # starts and ends that are tried, and the longest answer in tokens
OUTPUTS = 2  # of the model for each token: whether an answer starts there, and whether it ends there
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class Answer(BaseModel):
    """A right answer."""

    text: str


class Asked(BaseModel):
    """A question and its right answers."""

    id: str
    question: str
    answers: list[Answer]


class Paragraph(BaseModel):
    """A text and questions on it."""

    context: str
    qas: list[Asked]


class Article(BaseModel):
    """Paragraphs of one article."""

    paragraphs: list[Paragraph]


class Squad(BaseModel):
    """A file."""

    data: list[Article]


@dataclass(frozen=True)
class Question:
    """A question on a text."""

    text: str
    context: str
    answers: tuple[str, ...]  # any of them is right


@dataclass(frozen=True)
class Windows:
    """The questions of a file, each in one or more windows of tokens: first token, question, separator, part of the text, separator."""

    questions: list[Question]
    owners: list[int]  # number of the question, of each window
    inputs: dict[str, Array]  # input_ids, attention_mask, token_type_ids: int64 [windows, length]
    spans: Array  # int64 [windows, length, 2]: the characters of the text that a token covers; -1 for tokens of no text


def read(path: Path) -> list[Question]:
    """The questions of a file. Raises DataError for a file of another structure, or without questions."""
    with opened(path) as file:
        content = file.read()
    try:
        articles = Squad.model_validate_json(content).data
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path}: not in SQuAD's format: {place}: {first['msg']}") from error
    questions = [
        Question(asked.question.strip(), paragraph.context, tuple(answer.text for answer in asked.answers))
        for article in articles
        for paragraph in article.paragraphs
        for asked in paragraph.qas
    ]
    if not questions or not all(question.answers for question in questions):
        raise DataError(
            f"{path}: no questions, or a question without an answer", "SQuAD 1.1 has at least one"
        )
    return questions


def windows(tokenizer: Tokenizer, questions: list[Question], length: int) -> Windows:
    """All windows of `length` tokens. Raises UsageError if the longest question leaves no room for the text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with as_data_error("the tokenizer cannot encode the questions"):
        cut = [first_tokens(tokenizer, question.text) for question in questions]
        longest = max(len(tokenizer.encode(text, "").ids) for text in cut)
    if length <= longest:
        hint = f"use --seq {longest + STRIDE}"
        raise UsageError(f"--seq {length}: questions have up to {longest} tokens", hint)
    shared = max(
        length - longest - STRIDE, 0
    )  # tokens of the text that a window shares with the one before it
    with as_data_error("the tokenizer cannot encode the texts"):
        tokenizer.enable_truncation(length, stride=shared, strategy="only_second")
        tokenizer.enable_padding(length=length)
        pairs = [(text, question.context) for text, question in zip(cut, questions, strict=True)]
        encoded = tokenizer.encode_batch(pairs)
    parts = [(number, part) for number, first in enumerate(encoded) for part in (first, *first.overflowing)]
    arrays = {
        "input_ids": [part.ids for _, part in parts],
        "attention_mask": [part.attention_mask for _, part in parts],
        "token_type_ids": [part.type_ids for _, part in parts],
    }
    spans = np.array([part.offsets for _, part in parts], dtype=np.int64)
    of_text = np.array([[sequence == 1 for sequence in part.sequence_ids] for _, part in parts])
    spans[~of_text] = -1
    inputs = {name: np.array(rows, dtype=np.int64) for name, rows in arrays.items()}
    return Windows(questions, [number for number, _ in parts], inputs, spans)


def first_tokens(tokenizer: Tokenizer, text: str) -> str:
    """The text up to its token number QUESTION."""
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return text[: encoded.offsets[QUESTION - 1][1]] if len(encoded.ids) > QUESTION else text


def best_answer(start: Array, end: Array, spans: Array) -> tuple[float, int, int]:
    """The best answer in a window: its score, and its first character and the one after its last; (-inf, 0, 0) if there is none.

    start, end: logits [length]. It begins and ends at one of the BEST tokens, and has at most LONGEST.
    """
    allowed = spans[:, 0] >= 0
    starts, ends = (
        np.argsort(-np.where(allowed, logits, -np.inf), kind="stable")[:BEST] for logits in (start, end)
    )
    scores = start[starts][:, None] + end[ends][None]
    length = ends[None] - starts[:, None]
    possible = (length >= 0) & (length < LONGEST) & allowed[starts][:, None] & allowed[ends][None]
    scores = np.where(possible, scores, -np.inf)
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    if not np.isfinite(scores[row, column]):
        return -np.inf, 0, 0
    return float(scores[row, column]), int(spans[starts[row], 0]), int(spans[ends[column], 1])


def answers(found: Windows, logits: Array) -> list[str]:
    """The answer to each question: the best of its windows. logits: [windows, length, 2], of starts and ends."""
    best: dict[int, tuple[float, int, int]] = {}
    for window, owner in enumerate(found.owners):
        answer = best_answer(logits[window, :, 0], logits[window, :, 1], found.spans[window])
        if owner not in best or answer[0] > best[owner][0]:
            best[owner] = answer
    return [q.context[best[i][1] : best[i][2]] for i, q in enumerate(found.questions)]


def normal(text: str) -> list[str]:
    """The words of an answer without case, punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def f1(got: Sequence[str], want: Sequence[str]) -> float:
    """The F1 of the words of two answers."""
    common = sum((Counter(got) & Counter(want)).values())
    return 2 * common / (len(got) + len(want)) if common else 0.0


def scores(questions: Sequence[Question], given: Sequence[str]) -> dict[str, float]:
    """`exact_match` and `f1` of answers, 0 to 1: means over the questions of the best score against any right answer."""
    exact, overlap = [], []
    for question, answer in zip(questions, given, strict=True):
        words = normal(answer)
        right = [normal(text) for text in question.answers]
        exact.append(any(words == want for want in right))
        overlap.append(max(f1(words, want) for want in right))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def evaluate(
    found: Windows,
    batches: Sequence[Mapping[str, Array]],
    output: str,
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]],
) -> dict[str, float]:
    """The scores of a session. batches: the windows in order, the last batch filled with windows of the first."""
    logits = np.concatenate([run(batch)[output] for batch in batches])[: len(found.owners)]
    return scores(found.questions, answers(found, logits))
