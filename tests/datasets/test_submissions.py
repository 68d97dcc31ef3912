"""Mutated submissions. Only submissions that answer the queries of the truth are scored, and their scores equal those of plain
loops. What the organisers' scorers refuse is refused. docs/data.md lists what they score and buzzer refuses.

200 mutations, or BUZZER_MUTATIONS=2000. `-s` shows how many of each kind were scored and refused, and by whom.
"""

import json
import math
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pandas as pd
import pytest
import strict_reader as strict
from mutations import mutated
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from buzzer.datasets import booking, online_shoppers, recsys2021, sigir_ecom
from buzzer.datasets.contract import silent
from buzzer.errors import DataError

MUTATIONS = int(os.environ.get("BUZZER_MUTATIONS", "200"))
Scores = Mapping[str, float]
REC, CART = "rec_test_phase_2.json", "intention_test_phase_2.json"
ENGAGEMENTS = ("reply", "retweet", "quote", "like")


class Form(NamedTuple):
    dataset: ModuleType
    answer: str  # name of the submission file
    truth: str
    make: Callable[[Path, random.Random], bytes]  # a valid submission
    right: Callable[[bytes, Path], Scores]  # its scores from plain loops; raises strict.Refused
    official: (
        Callable[[bytes, Path], float] | None
    )  # its score by the organisers' script; raises any exception


# ---- booking: rows joined to the truth, the mean over the rows of the submission ----------------------------------------------


def booking_answer(truth: Path, rng: random.Random) -> bytes:
    trips = [line.split(",")[0] for line in truth.read_text().splitlines()[1:]]
    rows = [",".join([trip, *(str(rng.randint(1, 30)) for _ in range(4))]) for trip in trips]
    return ("\n".join(["utrip_id,city_id_1,city_id_2,city_id_3,city_id_4", *rows]) + "\n").encode()


def booking_right(answer: bytes, truth: Path) -> Scores:
    cities = [f"city_id_{i}" for i in range(1, 5)]
    rows = strict.table(answer, {"utrip_id": "str"} | dict.fromkeys(cities, "int64"))
    known = strict.table(truth.read_bytes(), strict.BOOKING["ground_truth.csv"])
    if sorted(row["utrip_id"] for row in rows) != sorted(row["utrip_id"] for row in known):
        raise strict.Refused(0)
    given = {row["utrip_id"]: [row[city] for city in cities] for row in rows}
    hits = [row["city_id"] in given[row["utrip_id"]] for row in known]
    return {"accuracy@4": sum(hits) / len(hits)}


def booking_official(answer: bytes, truth: Path) -> float:
    given = pd.read_csv(BytesIO(answer))
    joined = given.join(pd.read_csv(truth).set_index("utrip_id"), on="utrip_id")
    cities = ["city_id_1", "city_id_2", "city_id_3", "city_id_4"]
    return float(joined.apply(lambda row: row["city_id"] in row[cities].values, axis=1).mean())


# ---- recsys2021: rows without header ------------------------------------------------------------------------------------------


def recsys_answer(truth: Path, rng: random.Random) -> bytes:
    rows = [line.split("\x01") for line in truth.read_text().splitlines()]
    return "".join(f"{r[2]},{r[14]},{rng.random()},0,1,1e-05\n" for r in rows).encode()


def recsys_right(answer: bytes, truth: Path) -> Scores:
    kinds = {"tweet_id": "str", "engaging_user_id": "str"} | dict.fromkeys(ENGAGEMENTS, "chance")
    if answer.startswith(b"\xef\xbb\xbf"):
        raise strict.Refused(1)
    # Read as a file with a header, so that quotes around whole fields are allowed.
    rows = strict.table(",".join(kinds).encode() + b"\n" + answer, kinds)
    known = {(r[2], r[14]): r for r in (line.split("\x01") for line in truth.read_text().splitlines())}
    pairs = [(row["tweet_id"], row["engaging_user_id"]) for row in rows]
    if sorted(pairs) != sorted(known):
        raise strict.Refused(0)
    return group_means(
        [known[pair] for pair in pairs], {name: [row[name] for row in rows] for name in ENGAGEMENTS}
    )


def group_means(known: list[list[str]], given: Mapping[str, list[float]]) -> Scores:
    """AP and RCE by scikit-learn: means over the groups of author followers and over the engagements."""
    values: dict[str, list[float]] = {"AP": [], "RCE": []}
    for at, name in enumerate(ENGAGEMENTS):
        groups = defaultdict[int, list[tuple[int, float]]](list)
        for row, chance in zip(known, given[name], strict=True):
            group = sum(int(row[10]) >= least for least in (240, 588, 1331, 3996))
            groups[group].append((int(row[20 + at] != ""), chance))
        found: dict[str, list[float]] = {"AP": [], "RCE": []}
        for members in groups.values():
            y, p = zip(*members, strict=True)
            rate = sum(y) / len(y)
            if rate:
                found["AP"].append(float(average_precision_score(y, p)))
            if 0 < rate < 1:
                clipped = [min(max(x, 1e-15), 1 - 1e-15) for x in p]
                losses = [log_loss(y, q, labels=[0, 1]) for q in (clipped, [rate] * len(y))]
                found["RCE"].append(100 * (1 - losses[0] / losses[1]))
        for kind, of_groups in found.items():
            values[kind].append(sum(of_groups) / len(of_groups) if of_groups else 0.0)
    return {kind: sum(of_labels) / 4 for kind, of_labels in values.items()}


def recsys_official(answer: bytes, truth: Path) -> float:
    """No script of the organisers is known. This scores as the participants did, with a log loss that clips."""
    given = pd.read_csv(  # pandas drops fields without a name, with a warning
        BytesIO(answer), header=None, names=["tweet_id", "engaging_user_id", *ENGAGEMENTS], index_col=False
    )
    if given.isna().any().any():
        raise ValueError("Input contains NaN")
    known = {(r[2], r[14]): r for r in (line.split("\x01") for line in truth.read_text().splitlines())}
    rows = [row for row in given.itertuples() if (row.tweet_id, row.engaging_user_id) in known]
    chances = {name: [float(getattr(row, name)) for row in rows] for name in ENGAGEMENTS}
    return group_means([known[row.tweet_id, row.engaging_user_id] for row in rows], chances)["AP"]


# ---- sigir_ecom: evaluation.py: predictions and labels by position, lengths asserted equal ------------------------------------


def rec_answer(truth: Path, rng: random.Random) -> bytes:
    tree = json.loads(truth.read_text())
    for query in tree:
        query["label"] = rng.sample(query["label"] * 20, 8) if query["label"] else ["0"]
    return json.dumps(tree, indent=1).encode()


def cart_answer(truth: Path, rng: random.Random) -> bytes:
    tree = [query | {"label": rng.randrange(2)} for query in json.loads(truth.read_text())]
    return json.dumps(tree, indent=1).encode()


def labels_of(answer: bytes, right: list[Any], good: Callable[[Any], bool]) -> list[Any]:
    """The labels of a submission. Raises Refused for a file that is not a submission."""
    try:
        given = json.loads(
            strict.text_of(answer), object_pairs_hook=strict.unique, parse_constant=strict.refuse
        )
        assert type(given) is list and [q["query"] for q in given] == [q["query"] for q in right]
        assert all(good(query["label"]) for query in given)
    except (strict.Refused, ValueError, TypeError, KeyError, AssertionError, RecursionError) as error:
        raise strict.Refused(0) from error
    return [query["label"] for query in given]


def is_items(label: Any) -> bool:
    return type(label) is list and all(
        type(x) in (str, int, float) and x not in (math.inf, -math.inf) for x in label
    )


def rec_right(answer: bytes, truth: Path) -> Scores:
    right = json.loads(truth.read_text())
    labels, mrr, f1 = labels_of(answer, right, is_items), 0.0, 0.0
    for label, query in zip(labels, right, strict=True):
        wanted = query["label"]
        places = [i for i, item in enumerate(label[:20], 1) if wanted and item == wanted[0]]
        mrr += 1 / places[0] if places else 0.0
        hits = len({item for item in label[:20] if item in wanted})
        precision, recall = hits / 20, hits / len(set(wanted)) if wanted else 0.0
        f1 += 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"MRR@20": mrr / len(right), "F1@20": f1 / len(right)}


def rec_official(answer: bytes, truth: Path) -> float:
    preds = [item["label"] for item in json.loads(answer.decode())]
    labels = [item["label"] for item in json.loads(truth.read_bytes())]
    assert len(preds) == len(labels)
    ranks = []
    for guesses, wanted in zip(preds, labels, strict=True):
        first = guesses[:20]
        ranks.append(1 / (first.index(wanted[0]) + 1) if wanted and wanted[0] in first else 0.0)
        set(first) & set(wanted)  # as in the F1, which cannot hash a list
    return sum(ranks) / len(ranks)


def cart_right(answer: bytes, truth: Path) -> Scores:
    right = json.loads(truth.read_text())
    labels = labels_of(answer, right, lambda label: type(label) is int and label in (0, 1))
    hits = defaultdict[int, list[bool]](list)
    for label, query in zip(labels, right, strict=True):
        hits[query["nb_after_add"]].append(label == query["label"])
    return {"weighted_f1": sum((1 - n / 20) * sum(found) / len(found) for n, found in hits.items())}


def cart_official(answer: bytes, truth: Path) -> float:
    preds = [item["label"] for item in json.loads(answer.decode())]
    known = json.loads(truth.read_bytes())
    assert len(preds) == len(known)
    weights, total = {0: 1.0, 2: 0.9, 4: 0.8, 6: 0.7, 8: 0.6, 10: 0.5}, 0.0
    for n in {item["nb_after_add"] for item in known}:
        hits = [p == item["label"] for p, item in zip(preds, known, strict=True) if item["nb_after_add"] == n]
        total += weights[n] * sum(hits) / len(hits)
    return total


# ---- online_shoppers ----------------------------------------------------------------------------------------------------------


def shoppers_answer(truth: Path, rng: random.Random) -> bytes:
    rows = [line.split(",")[0] for line in truth.read_text().splitlines()[1:]]
    return ("row,chance\n" + "".join(f"{row},{rng.random()}\n" for row in rows)).encode()


def shoppers_right(answer: bytes, truth: Path) -> Scores:
    rows = strict.table(answer, {"row": "int64", "chance": "float64"})
    known = dict(map(int, line.split(",")) for line in truth.read_text().splitlines()[1:])
    if sorted(row["row"] for row in rows) != sorted(known):
        raise strict.Refused(0)
    y, p = [known[row["row"]] for row in rows], [row["chance"] for row in rows]
    hits = [(chance > 0.5) == bought for chance, bought in zip(p, y, strict=True)]
    return {"AUC": float(roc_auc_score(y, p)), "accuracy": sum(hits) / len(hits)}


FORMS = {
    "booking": Form(booking, "s.csv", "ground_truth.csv", booking_answer, booking_right, booking_official),
    "recsys2021": Form(
        recsys2021, "s.csv", "test_truth/part-00000", recsys_answer, recsys_right, recsys_official
    ),
    "sigir_ecom, items": Form(sigir_ecom, "s.json", REC, rec_answer, rec_right, rec_official),
    "sigir_ecom, carts": Form(sigir_ecom, "s.json", CART, cart_answer, cart_right, cart_official),
    "online_shoppers": Form(online_shoppers, "s.csv", "truth.csv", shoppers_answer, shoppers_right, None),
}


DOCUMENTED = {  # message for a submission that only buzzer refuses -> words in docs/data.md
    r"blank line|carriage return|quote|control character|byte order mark|not UTF-8|header|no rows": "breaks the rules above",
    r"occurs twice|NaN|Infinity|not a list|longer than|truncated or damaged|text after": "breaks the rules above",
    r"Expected \d columns": "rows with too many or too few fields",
    r"is not a whole number": "cities that are not whole numbers",
    r"\d trips": "missing, additional or repeated trips",
    r"\d pairs|\d rows share": "missing, additional or repeated pairs",
    r"not a number from 0 to 1": "numbers outside 0 to 1",
    r"column (tweet|engaging_user)_id: '' is not a value": "rows with too many or too few fields",
    r"not the events": "events that differ from the test",
    r"label .* is not": "`true`, `null` as item or label",
}


def test_submissions_that_only_buzzer_refuses_are_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert [words for words in DOCUMENTED.values() if words not in text] == []


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each data set, with a small truth."""
    root = tmp_path_factory.mktemp("truths")
    booking.generate(root / "booking", 0.00003, 5, silent)
    recsys2021.generate(root / "recsys2021", 0.000002, 5, silent)
    sigir_ecom.generate(root / "sigir_ecom", 0.0001, 5, silent)
    for name in (REC, CART):
        path = root / "sigir_ecom" / name
        path.write_text(json.dumps(json.loads(path.read_text())[:6], indent=1))
    (root / "online_shoppers").mkdir()
    rows = "".join(f"{5 * i},{i % 2}\n" for i in range(12))
    (root / "online_shoppers" / "truth.csv").write_text(f"row,bought\n{rows}")
    return root


@pytest.mark.filterwarnings("ignore::pandas.errors.ParserWarning")
@pytest.mark.parametrize("name", FORMS)
def test_only_submissions_that_match_the_truth_are_scored(truths: Path, tmp_path: Path, name: str) -> None:
    form = FORMS[name]
    truth = truths / name.split(",")[0] / form.truth
    outcomes = Counter[tuple[str, str]]()
    for seed in range(MUTATIONS // len(FORMS)):
        rng = random.Random(f"submission {name} {seed}")
        path, answer = tmp_path / form.answer, form.make(truth, rng)
        kind = "none"
        if seed:
            kind, answer = mutated(answer, form.answer, ",", rng)
        path.write_bytes(answer)
        case = f"{name} {seed}, {kind}"
        try:
            expected: Scores | None = form.right(answer, truth)
        except strict.Refused:
            expected = None
        official = official_score(form, answer, truth)
        try:
            got = form.dataset.score(path, truth)
        except DataError as error:
            assert expected is None, f"{case}: refused without reason: {error.message}"
            message = error.message.removeprefix(str(path))
            assert len(message) < 300 and message.isprintable(), f"{case}: {message!r}"
            by = {float: ", scored by the organisers", type(None): ""}.get(
                type(official), " by the organisers too"
            )
            outcomes[kind, f"refused{by}"] += 1
            if isinstance(official, float):
                assert any(re.search(reason, message) for reason in DOCUMENTED), f"{case}: {message}"
            continue
        assert expected is not None, f"{case}: scored, {got}"
        assert all(map(math.isfinite, got.values())), f"{case}: {got}"
        assert {metric: got[metric] for metric in expected} == pytest.approx(dict(expected)), case
        if form.official is not None:
            assert official == pytest.approx(next(iter(expected.values()))), (
                f"{case}: the organisers have {official}"
            )
        outcomes[kind, "scored"] += 1
    print(f"\n{name}:", *(f"{kind} {how} {n}" for (kind, how), n in sorted(outcomes.items())), sep="\n  ")
    assert {how.split()[0].strip(",") for _, how in outcomes} == {"scored", "refused"}


def official_score(form: Form, answer: bytes, truth: Path) -> float | Exception | None:
    """The score by the organisers' script, or the exception that it raises, or None if there is no script."""
    if form.official is None:
        return None
    try:
        return form.official(answer, truth)
    except (AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        return error
