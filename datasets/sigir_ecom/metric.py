"""The organisers' metrics, and submission files."""

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
from buzzer.datasets.strict_json import JsonObject, objects
from buzzer.errors import DataError

K = 20
WEIGHTS = dict(zip(AFTER_ADD, (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), strict=True))


def next_item_mrr(predicted: Sequence[Sequence[Any]], truth: Sequence[Sequence[Any]]) -> float:
    """MRR@20: the mean of 1 / rank of the first true item among the first 20 predictions, or 0 if it is not among them.

    A query without true items counts as 0. A repeated prediction occupies a rank. Equals the organisers' `mrr_at_k`.
    """
    total = 0.0
    for guesses, items in zip(predicted, truth, strict=True):
        first = list(guesses[:K])
        if items and items[0] in first:
            total += 1 / (first.index(items[0]) + 1)
    return total / len(truth)


def subsequent_f1(predicted: Sequence[Sequence[Any]], truth: Sequence[Sequence[Any]]) -> float:
    """F1@20, the mean over queries. Precision is hits / 20, also for fewer predictions; recall is hits / different true items.

    Without hits, F1 is 0. Equals the organisers' `f1_at_k`.
    """
    total = 0.0
    for guesses, items in zip(predicted, truth, strict=True):
        relevant = set(items)
        hits = len(relevant & set(guesses[:K]))
        if hits:
            precision, recall = hits / K, hits / len(relevant)
            total += 2 * precision * recall / (precision + recall)
    return total / len(truth)


def weighted_micro_f1(predicted: Sequence[int], truth: Sequence[int], after_add: Sequence[int]) -> float:
    """The sum over groups of queries of weight * micro-F1, at most 4.5. Equals the organisers' script.

    after_add: number of events after the first add (0, 2, .., 10), which defines the groups; their weights are 1, .9, .., .5.
    With one label per query, micro-F1 is the accuracy. A group without queries adds nothing. Raises DataError for another
    number of events.
    """
    right, count = defaultdict[int, int](int), defaultdict[int, int](int)
    for guess, label, n in zip(predicted, truth, after_add, strict=True):
        if n not in WEIGHTS:
            raise DataError(f"nb_after_add {n} is none of {', '.join(map(str, WEIGHTS))}")
        right[n] += guess == label
        count[n] += 1
    return sum(WEIGHTS[n] * right[n] / count[n] for n in sorted(count))


def labels(path: Path, kind: type | None = None) -> list[Any]:
    """The `label` of each query in file order: lists of items (first task), or 0 or 1 (second task).

    Raises DataError for a query without a label or with a label of another kind.
    """
    values = []
    for number, record in enumerate(objects(path)):
        kind = kind or (list if isinstance(record.get("label"), list) else int)
        values.append(label_of(path, number, record, kind))
    if not values:
        raise DataError(f"{path}: no queries")
    return values


def label_of(path: Path, number: int, record: JsonObject, kind: type) -> Any:
    """The label of one query: 0 or 1 if `kind` is int, or else a list of strings and finite numbers.

    Two items are the same if Python calls them equal, as in the organisers' script. Raises DataError for another label.
    """
    label = record.get("label")
    if kind is list:
        valid = isinstance(label, list) and all(map(is_item, label))
    else:
        valid = type(label) is int and label in (0, 1)  # `true` is not accepted
    if not valid:
        what = "a list of items" if kind is list else "0 or 1"
        raise DataError(f"{path}, query {number}: label {shown(label)} is not {what}")
    # Many labels repeat a few products: keep one string for each.
    return [intern(x) if type(x) is str else x for x in label] if isinstance(label, list) else label


def is_item(value: Any) -> bool:
    """Whether a value can be an item of a label: a string or a finite number."""
    return type(value) in (str, int) or (type(value) is float and isfinite(value))


def score(submission: Path, truth: Path) -> dict[str, float]:
    """The official scores of a submission: MRR@20 and F1@20 if the labels are lists of items, weighted_f1 if they are 0 or 1.

    Queries are matched by position. Raises DataError for a file that is not a submission, and for files with different numbers
    of queries or different events.
    """
    expected, predicted, mismatched = [], [], list[int]()
    after: list[Any] = []
    kind: type | None = None
    for number, (query, answer) in enumerate(zip_longest(objects(truth), objects(submission))):
        if query is not None:
            kind = kind or (list if isinstance(query.get("label"), list) else int)
            expected.append(label_of(truth, number, query, kind))
            after.append(query.get("nb_after_add"))
        if answer is not None:
            predicted.append(label_of(submission, number, answer, kind or list))
        if query is not None and answer is not None and not same_events(query, answer):
            mismatched.append(number)
    if not expected:
        raise DataError(f"{truth}: no queries")
    if len(predicted) != len(expected):
        raise DataError(
            f"{submission}: {len(predicted)} queries, {len(expected)} in {truth.name}",
            "a submission has one label for each query of the test file, in its order",
        )
    if mismatched:
        raise DataError(
            f"{submission}, query {mismatched[0]}: not the events of {truth.name} ({len(mismatched)} such queries)",
            "a submission is the test file with its labels filled in",
        )
    if kind is list:
        return {"MRR@20": next_item_mrr(predicted, expected), "F1@20": subsequent_f1(predicted, expected)}
    for number, n in enumerate(after):
        if type(n) is not int or n not in WEIGHTS:
            raise DataError(
                f"{truth}, query {number}: nb_after_add {shown(n)} is none of {', '.join(map(str, WEIGHTS))}"
            )
    return {"weighted_f1": weighted_micro_f1(predicted, expected, after)}


def same_events(query: JsonObject, answer: JsonObject) -> bool:
    """Whether a query of the truth and one of the submission have equal events."""
    try:
        return bool(query.get("query") == answer.get("query"))
    except RecursionError:  # deeply nested lists that the reader accepts
        return False


def write_records(path: Path, queries: Iterable[Mapping[str, object]]) -> None:
    """Write a JSON list with one object per line. Raises DataError, and leaves no file, if it cannot be written."""
    with new_file(path) as partial, written(partial) as file:
        for query in queries:
            file.add(query)


def write_submission(path: Path, test: Path, predicted: Iterable[Any]) -> None:
    """Write the official format: the test file with the prediction as `label` of each query, a list of SKU hashes, or 0 or 1.

    Raises ValueError unless there is one prediction per query.
    """
    filled = (
        record | {"label": label}
        for record, label in zip(objects(test, checked=True), predicted, strict=True)
    )
    write_records(path, filled)
