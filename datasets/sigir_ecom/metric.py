"""The organisers' metrics and submission files."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from math import isfinite
from pathlib import Path
from sys import intern
from typing import Any

from buzzer.datasets.files import new_file
from buzzer.datasets.lines import shown
from buzzer.datasets.sigir_ecom.json_file import written
from buzzer.datasets.sigir_ecom.schema import AFTER_ADD
from buzzer.datasets.strict_json import objects
from buzzer.errors import DataError

K = 20
WEIGHTS = dict(zip(AFTER_ADD, (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), strict=True))
MOST = sum(WEIGHTS.values())  # 4.5, the best score of the second task


def next_item_mrr(predicted: Sequence[Sequence[Any]], truth: Sequence[Sequence[Any]]) -> float:
    """MRR@20 of the first item of each truth list: 1 / its first place among the first 20 predicted, else 0.

    A query with an empty truth scores 0 and counts. A duplicated prediction wastes a place. As the organisers' `mrr_at_k`.
    """
    total = 0.0
    for guesses, items in zip(predicted, truth, strict=True):
        first = list(guesses[:K])
        if items and items[0] in first:
            total += 1 / (first.index(items[0]) + 1)
    return total / len(truth)


def subsequent_f1(predicted: Sequence[Sequence[Any]], truth: Sequence[Sequence[Any]]) -> float:
    """Mean over queries of F1@20: precision is hits / 20 however few are given, recall is hits / different true items; both
    0: F1 is 0. As the organisers' `f1_at_k`."""
    total = 0.0
    for guesses, items in zip(predicted, truth, strict=True):
        wanted = set(items)
        hits = len(wanted & set(guesses[:K]))
        if hits:
            precision, recall = hits / K, hits / len(wanted)
            total += 2 * precision * recall / (precision + recall)
    return total / len(truth)


def weighted_micro_f1(predicted: Sequence[int], truth: Sequence[int], after_add: Sequence[int]) -> float:
    """Sum over the groups of events after the add (0, 2, .., 10) of weight (1, .9, .., .5) times the group's micro-F1, which
    for one label a query is its accuracy. A group without queries adds nothing; the best is 4.5. As the organisers'.

    Raises DataError for another number of events.
    """
    right, count = defaultdict[int, int](int), defaultdict[int, int](int)
    for guess, label, n in zip(predicted, truth, after_add, strict=True):
        if n not in WEIGHTS:
            raise DataError(f"nb_after_add {n} is none of {', '.join(map(str, WEIGHTS))}")
        right[n] += guess == label
        count[n] += 1
    return sum(WEIGHTS[n] * right[n] / count[n] for n in sorted(count))


def labels(path: Path, kind: type | None = None) -> list[Any]:
    """The `label` of each query in file order, all lists (first task) or all 0 or 1 (second).

    Raises DataError for a query without one or with one of another kind.
    """
    found = []
    for number, record in enumerate(objects(path)):
        kind = kind or (list if isinstance(record.get("label"), list) else int)
        found.append(label_of(path, number, record, kind))
    if not found:
        raise DataError(f"{path}: no queries")
    return found


def label_of(path: Path, number: int, record: Mapping[str, Any], kind: type) -> Any:
    """The label of one query: 0 or 1, or texts and finite numbers, which are the same item where Python calls them equal, as
    for the organisers' script."""
    label = record.get("label")
    if kind is list:
        good = isinstance(label, list) and all(map(is_item, label))
    else:
        good = type(label) is int and label in (0, 1)  # true is no 1 here
    if not good:
        what = "a list of items" if kind is list else "0 or 1"
        raise DataError(f"{path}, query {number}: label {shown(label)} is not {what}")
    # Of the same few products over and over: one text each.
    return [intern(x) if type(x) is str else x for x in label] if isinstance(label, list) else label


def is_item(value: Any) -> bool:
    return type(value) in (str, int) or (type(value) is float and isfinite(value))


def score(submission: Path, truth: Path) -> dict[str, float]:
    """The official scores of a submission: MRR@20 and F1@20 where the truth's labels are lists of items, weighted_f1 where they
    are 0 or 1. Queries are matched by position.

    Raises DataError for files that are no submissions, have different numbers of queries, or queries with other events.
    """
    expected, given, others = [], [], list[int]()
    after: list[Any] = []
    kind: type | None = None
    for number, (known, answer) in enumerate(zip_longest(objects(truth), objects(submission))):
        if known is not None:
            kind = kind or (list if isinstance(known.get("label"), list) else int)
            expected.append(label_of(truth, number, known, kind))
            after.append(known.get("nb_after_add"))
        if answer is not None:
            given.append(label_of(submission, number, answer, kind or list))
        if known is not None and answer is not None and not same_events(known, answer):
            others.append(number)
    if not expected:
        raise DataError(f"{truth}: no queries")
    if len(given) != len(expected):
        raise DataError(
            f"{submission}: {len(given)} queries, {len(expected)} in {truth.name}",
            "a submission has one label for each query of the test file, in its order",
        )
    if others:
        raise DataError(
            f"{submission}, query {others[0]}: not the events of {truth.name}'s ({len(others)} such queries)",
            "a submission is the test file with its labels filled in",
        )
    if kind is list:
        return {"MRR@20": next_item_mrr(given, expected), "F1@20": subsequent_f1(given, expected)}
    for number, n in enumerate(after):
        if type(n) is not int or n not in WEIGHTS:
            raise DataError(
                f"{truth}, query {number}: nb_after_add {shown(n)} is none of {', '.join(map(str, WEIGHTS))}"
            )
    return {"weighted_f1": weighted_micro_f1(given, expected, after)}


def same_events(known: Mapping[str, Any], answer: Mapping[str, Any]) -> bool:
    try:
        return bool(known.get("query") == answer.get("query"))
    except RecursionError:  # lists in lists, to the depth that the reader takes
        return False


def write_records(path: Path, queries: Iterable[Mapping[str, Any]]) -> None:
    """A JSON list, one object a line, written complete or not at all."""
    with new_file(path) as aside, written(aside) as file:
        for query in queries:
            file.add(query)


def write_submission(path: Path, test: Path, predicted: Iterable[Any]) -> None:
    """The official format: the test file with each query's `label` as predicted (a list of SKU hashes, or 0 or 1).

    Raises ValueError unless there is one prediction a query.
    """
    filled = (
        record | {"label": label} for record, label in zip(objects(test, known=True), predicted, strict=True)
    )
    write_records(path, filled)
