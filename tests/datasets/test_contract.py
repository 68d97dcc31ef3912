"""Mutated official files: what the check accepts, every engine reads as the rows and values that an independent strict reader
finds; what that refuses, the check refuses, with a place and a short message.

The same of submissions: only what answers the truth's queries is scored.

200 mutations of either; BUZZER_MUTATIONS=2000 makes more, and `-s` shows how many of which kind were accepted and refused.
"""

import json
import math
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import strict_reader as strict

from buzzer.datasets import booking, online_shoppers, recsys2021, sigir_ecom
from buzzer.datasets.booking.schema import SUBMISSION as ANSWER
from buzzer.datasets.booking.schema import TEST, TRAIN, TRUTH
from buzzer.datasets.online_shoppers.reader import separator_of
from buzzer.datasets.recsys2021.schema import LABELS, PARTS, SUBMISSION
from buzzer.datasets.sigir_ecom import json_file
from buzzer.datasets.sigir_ecom.schema import KINDS, NAMES, TESTS
from buzzer.datasets.strict_json import objects
from buzzer.engine import frames
from buzzer.errors import DataError

MUTATIONS = int(os.environ.get("BUZZER_MUTATIONS", "200"))
ENGINES = ("pandas", "polars")
SHOPPERS = "online_shoppers_intention.csv"


class Format(NamedTuple):
    dataset: ModuleType
    oracle: Callable[[Path], strict.Folder]
    kinds: Mapping[str, Mapping[str, str]]  # of the files that engines read as CSV
    separator: str
    headless: bool


FORMATS = {
    "booking": Format(
        booking,
        strict.read_booking,
        {"train_set.csv": TRAIN, "test_set.csv": TEST, "ground_truth.csv": TRUTH},
        ",",
        False,
    ),
    "recsys2021": Format(
        recsys2021, strict.read_recsys, {f"{part}/part-00000": k for part, k in PARTS.items()}, "\x01", True
    ),
    "sigir_ecom": Format(
        sigir_ecom, strict.read_sigir, {NAMES[part][0]: KINDS[part] for part in KINDS}, ",", False
    ),
    "online_shoppers": Format(
        online_shoppers, strict.read_shoppers, {SHOPPERS: strict.SHOPPERS_KINDS}, ";", False
    ),
}


def silent(share: float, what: str) -> None:
    """No progress shown."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small generated files of every format."""
    root = tmp_path_factory.mktemp("contract")
    booking.generate(root / "booking", 0.00003, 5, silent)
    sigir_ecom.generate(root / "sigir_ecom", 0.00001, 5, silent)
    recsys2021.generate(root / "recsys2021", 0.000001, 5, silent)
    online_shoppers.generate(root / "online_shoppers", 0.01, 5, silent)
    for name in FORMATS["recsys2021"].kinds:
        cut(root / "recsys2021" / name, 12)
    cut(root / "online_shoppers" / SHOPPERS, 20)
    for name in ("browsing_train.csv", "search_train.csv", "sku_to_content.csv"):
        cut(root / "sigir_ecom" / name, 30)
    for names in TESTS.values():
        path = root / "sigir_ecom" / names[0]
        path.write_text(json.dumps(json.loads(path.read_text())[:4], indent=1))
    return {name: root / name for name in FORMATS}


def cut(path: Path, lines: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))


# ---- mutations ----------------------------------------------------------------------------------------------------

BYTES = (
    *(b'"', b'""', b"\0", b"\r", b"\n", b"\r\n", b"\n\n", b",", b";", b"\t", b"\x01", b" ", b"-", b".", b"e"),
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x1a", b"\x7f", b"\\", b"'", b"[", b"]", b"{", b"}", b":"),
    *(x.encode() for x in ("٣", "\u2028", "\xa0", "é", "\ufeff", "0", "9")),
)
VALUES = (
    *(
        "",
        '""',
        '"',
        " ",
        "NA",
        "nan",
        "null",
        "None",
        "-",
        "+5",
        "-0",
        "007",
        " 5",
        "5 ",
        "1_000",
        "0x10",
        "1.0",
    ),
    *(
        "1.",
        ".5",
        "1e5",
        "1E400",
        "-1e-5",
        "inf",
        "9" * 18,
        "9" * 19,
        "-" + "9" * 40,
        "٣",
        "１２",
        "TRUE",
        "true",
    ),
    *("True", "2016-02-29", "2015-02-29", "2016-1-2", "0000-01-01", "9999-12-31", "٢٠١٦-٠١-٠١", "13/04/2016"),
    *(
        "a" * 64,
        "A" * 32,
        "[]",
        "['']",
        "[1, 2]",
        "Photo",
        "Photo\tGIF",
        "Sound",
        "0",
        "1",
        "1\t2",
        "1\t",
        'El"bonia',
    ),
)
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        1.0,
        0.5,
        2**63,
        -(2**63) - 1,
        10**18,
        10**400,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        "a",
        "a" * 64,
        "pageview",
        "add",
        "\ud800",
        "\0",
        [],
        [1],
        [[]],
        {},
        {"a": 1},
        ["a" * 64],
        [0.5] * 50,
    ),
    *([1e300] * 50, [True] * 50, [None] * 50),
)


def replaced(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.choice(BYTES) + data[at + 1 :]


def inserted(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(BYTES) + data[at:]


def deleted(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randint(1, 3) :]


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def lines_changed(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            lines.insert(at, lines[at])
        case 1:
            del lines[at]
        case 2:
            lines.insert(rng.randrange(len(lines) + 1), rng.choice([b"\n", b"\r\n", b" \n", b",\n"]))
        case 3:
            lines[at] = lines[at].rstrip(b"\n") + rng.choice([b"\r\n", b"\r", b" \n", b"\r\r\n"])
        case 4:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 5:
            lines.append(rng.choice([b"\n", b"\r", b"\0", b" ", b"\x1a", b"]", b"x", b"\r\n\r\n"]))
    return b"".join(lines)


def ends_changed(data: bytes, rng: random.Random) -> bytes:
    """Of the whole file: line ends, the last one, a byte order mark, the other separator."""
    match rng.randrange(6):
        case 0:
            return data.replace(b"\n", b"\r\n")
        case 1:
            return data.replace(b"\n", b"\r")
        case 2:
            return data.rstrip(b"\n")
        case 3:
            return b"\xef\xbb\xbf" + data
        case 4:
            return data.replace(b"\n", b"\r\n").rstrip(b"\n")
        case _:
            return data.replace(b";", b",")


def field_changed(data: bytes, rng: random.Random, separator: str) -> bytes:
    lines = data.decode().split("\n")
    at = rng.randrange(max(len(lines) - 1, 1))
    fields = lines[at].split(separator)
    column = rng.randrange(len(fields))
    old = fields[column]
    fields[column] = rng.choice(
        [
            *[rng.choice(VALUES)] * 6,
            f'"{old}"',
            f'"{old}',
            f'{old}"',
            f" {old}",
            f"{old} ",
            f"'{old}'",
            old.lower(),
            old.replace("0", "٠"),
            *[rng.choice(fields)] * 2,
        ]
    )
    if rng.random() < 0.1:
        del fields[column]
    lines[at] = separator.join(fields)
    return "\n".join(lines).encode()


def json_changed(data: bytes, rng: random.Random) -> bytes:
    """A value somewhere in the tree, a key, or the text around."""
    text = data.decode()
    match rng.randrange(5):
        case 0:
            rubbish = rng.choice(["]", "[]", "x", ",", "\n\n ", "{}", "\0", "// end", "[" * 100_000])
            return (text + rubbish if rng.random() < 0.5 else rubbish + text).encode()
        case 1:
            commas = [m.start() for m in re.finditer(",", text)]
            at = rng.choice(commas)
            return (text[:at] + rng.choice(["", ",,", " ,]", ",}", ";"]) + text[at + 1 :]).encode()
        case 2:
            at = rng.choice([m.start() for m in re.finditer('"[a-z_]+":', text)])
            return (
                text[:at]
                + rng.choice(['"label": 1, ', '"is_search": true, ', "is_search: true, "])
                + text[at:]
            ).encode()
    tree = json.loads(text)
    place: Any = rng.choice(tree)
    if rng.random() < 0.7:
        place = rng.choice(place["query"])
    key = rng.choice([*place])
    match rng.randrange(4):
        case 0:
            del place[key]
        case 1:
            place[rng.choice(["more", "hashed_ur", "query", "label"])] = rng.choice(ODD)
        case 2 if isinstance(place[key], list) and place[key]:
            place[key][rng.randrange(len(place[key]))] = rng.choice(ODD)
        case _:
            place[key] = rng.choice(ODD)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


TEXT = (replaced, inserted, deleted, truncated, lines_changed, ends_changed)


def mutated(data: bytes, name: str, separator: str, rng: random.Random) -> tuple[str, bytes]:
    """A kind of mutation and what it makes of a file."""
    if rng.random() < 0.5:
        if name.endswith(".json"):
            return "json_changed", json_changed(data, rng)
        return "field_changed", field_changed(data, rng, separator)
    change = rng.choice(TEXT)
    changed = change(data, rng)
    if rng.random() < 0.2:  # and another
        changed = rng.choice(TEXT)(changed or b"\n", rng)
    return change.__name__, changed


# ---- what is held -------------------------------------------------------------------------------------------------


def as_read(
    engine: str, path: Path, kinds: Mapping[str, str], separator: str, headless: bool
) -> list[strict.Row]:
    """The rows of a CSV file as an engine reads them."""
    e = frames.load(engine)
    types = {name: kind if kind in ("int64", "float64", "date") else "str" for name, kind in kinds.items()}
    types |= {
        name: "float64" for name in kinds if name in LABELS.values()
    }  # as the task does: they may be empty
    t = e.read_csv(path, types, names=list(kinds) if headless else None, separator=separator)
    return rows_of(e, e.select(t, ["row", *kinds]))


def rows_of(e: Any, t: Any) -> list[strict.Row]:
    """A frame's rows in order, missing as None, days as a date's number."""
    found = t.collect().to_dicts() if hasattr(t, "collect") else t.to_dict("records")
    rows = [{name: plain(value) for name, value in row.items()} for row in found]
    return sorted(rows, key=lambda row: row["row"])


def plain(value: Any) -> Any:
    if isinstance(value, date):
        return (value - date(1970, 1, 1)).days
    return None if isinstance(value, float) and math.isnan(value) else value


def alike(one: Any, other: Any) -> bool:
    """Equal; floats but for the last places, as engines round differently."""
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-15, abs_tol=0.0) or one == other
    return type(one) is type(other) and one == other


def hold(form: Format, folder: Path, name: str, told: str) -> str:
    """Hold check and engines against the strict reader, for the file `name` that was changed; accepted or refused."""
    want = form.oracle(folder)
    try:
        files = form.dataset.check(folder, silent)
    except DataError as error:
        assert want.faults, f"{told}: refused without need: {error.message}"
        message = error.message.removeprefix(f"{folder}")
        assert len(message) < 250 and message.isprintable(), f"{told}: {message!r}"
        lines = {line for at, line in want.faults if at == name}
        found = re.search(r", line (\d+)", message)
        if lines and 0 not in lines and not name.endswith(".json"):
            assert name in message and found, f"{told}: no place in {message}"
            assert int(found[1]) in lines, f"{told}: {message}, and not one of {sorted(lines)}"
        return "refused"
    assert not want.faults, f"{told}: accepted in spite of {sorted(want.faults)[:3]}"
    assert sum(files.rows.values()) == sum(map(len, want.tables.values())), told
    if name.endswith(".json"):
        hold_events(folder / name, want.tables[name], told)
        return "accepted"
    separator = separator_of(folder / name) if name == SHOPPERS else form.separator
    rows = want.tables[name]
    for engine in ENGINES if rows else ():
        got = as_read(engine, folder / name, form.kinds[name], separator, form.headless)
        assert len(got) == len(rows), f"{told}: {engine} reads {len(got)} rows of {len(rows)}"
        for ours, right in zip(got, rows, strict=True):
            for column in form.kinds[name]:
                assert alike(ours[column], plain(right[column])), (
                    f"{told}: {engine} reads {ours[column]!r} for {right[column]!r} in {column}, line {right['line']}"
                )
    return "accepted"


def hold_events(path: Path, right: list[Any], told: str) -> None:
    assert list(objects(path, known=True)) == right, told
    events = [event for query in right for event in query["query"]]
    table = json_file.events(right)
    for engine in ENGINES:
        e = frames.load(engine)
        got = rows_of(e, e.from_arrow(table))
        for ours, event in zip(got, events, strict=True):
            for column in ("event_type", "product_action", "product_sku_hash", "hashed_url"):
                assert ours[column] == event.get(column), told
            assert ours["server_timestamp_epoch_ms"] == event["server_timestamp_epoch_ms"], told
            assert ours["searched"] == event["is_search"], told


@pytest.mark.parametrize("name", FORMATS)
def test_the_unchanged_files_are_accepted(made: dict[str, Path], name: str) -> None:
    for file in files_of(made[name]):
        assert hold(FORMATS[name], made[name], file, file) == "accepted"


def files_of(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("generator.json", "submission.csv")
    )


@pytest.mark.parametrize("name", FORMATS)
def test_check_and_engines_read_as_the_strict_reader(
    made: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder, form = tmp_path / "copy", FORMATS[name]
    shutil.copytree(made[name], folder)
    outcomes = Counter[tuple[str, str]]()
    for seed in range(MUTATIONS // len(FORMATS)):
        rng = random.Random(f"{name} {seed}")
        file = rng.choice(files_of(folder))
        before = (folder / file).read_bytes()
        kind, data = mutated(before, file, form.separator, rng)
        (folder / file).write_bytes(data)
        outcomes[kind, hold(form, folder, file, f"{name} {seed}, {kind} {file}")] += 1
        (folder / file).write_bytes(before)
    print(f"\n{name}:", *(f"{kind} {how} {n}" for (kind, how), n in sorted(outcomes.items())), sep="\n  ")
    assert {how for _, how in outcomes} == {"accepted", "refused"}


# ---- submissions --------------------------------------------------------------------------------------------------


class Submission(NamedTuple):
    answer: str  # name of the file
    truth: str
    make: Callable[[Path, random.Random], bytes]  # a good one
    oracle: Callable[[Path, Path], float | None]  # its score, None where it has one that is not told here
    metric: str


def booking_answer(truth: Path, rng: random.Random) -> bytes:
    trips = [line.split(",")[0] for line in truth.read_text().splitlines()[1:]]
    rows = [",".join([trip, *(str(rng.randint(1, 30)) for _ in range(4))]) for trip in trips]
    return ("\n".join(["utrip_id,city_id_1,city_id_2,city_id_3,city_id_4", *rows]) + "\n").encode()


def booking_score(submission: Path, truth: Path) -> float:
    rows = {row["utrip_id"]: row for row in strict.table(submission.read_bytes(), ANSWER)}
    right = {row["utrip_id"]: row["city_id"] for row in strict.table(truth.read_bytes(), TRUTH)}
    if len(rows) < len(strict.table(submission.read_bytes(), ANSWER)) or set(rows) != set(right):
        raise strict.Refused(0)
    hits = [city in [rows[trip][f"city_id_{i}"] for i in range(1, 5)] for trip, city in right.items()]
    return sum(hits) / len(hits)


def recsys_answer(truth: Path, rng: random.Random) -> bytes:
    rows = [line.split("\x01") for line in truth.read_text().splitlines()]
    return "".join(f"{r[2]},{r[14]},{rng.random()},0,1,1e-05\n" for r in rows).encode()


def recsys_score(submission: Path, truth: Path) -> None:
    kinds = {name: "str" if name.endswith("id") else "chance" for name in SUBMISSION}
    lines = [line.split("\x01") for line in truth.read_text().splitlines()]
    # As a file with a header, which is what its fields look like: quotes around whole fields are allowed.
    head = ",".join(kinds).encode() + b"\n"
    if submission.read_bytes().startswith(b"\xef\xbb\xbf"):
        raise strict.Refused(1)
    rows = strict.table(head + submission.read_bytes(), kinds)
    pairs = [(row["tweet_id"], row["engaging_user_id"]) for row in rows]
    if sorted(pairs) != sorted((line[2], line[14]) for line in lines):
        raise strict.Refused(0)


def sigir_answer(truth: Path, rng: random.Random) -> bytes:
    tree = json.loads(truth.read_text())
    for query in tree:
        query["label"] = rng.sample(query["label"] * 20, 8) if query["label"] else ["0"]
    return json.dumps(tree, indent=1).encode()


def sigir_score(submission: Path, truth: Path) -> float:
    right = json.loads(truth.read_text())
    try:
        given = json.loads(
            strict.text_of(submission.read_bytes()),
            object_pairs_hook=strict.unique,
            parse_constant=strict.refuse,
        )
        assert type(given) is list and [q["query"] for q in given] == [q["query"] for q in right]
        labels = [query["label"] for query in given]
        assert all(type(label) is list for label in labels)
        assert all(type(x) in (str, int, float) and x not in (math.inf, -math.inf) for y in labels for x in y)
    except (strict.Refused, ValueError, TypeError, KeyError, AssertionError, RecursionError) as error:
        raise strict.Refused(0) from error
    ranks = [
        label[:20].index(q["label"][0]) + 1 if q["label"] and q["label"][0] in label[:20] else 0
        for label, q in zip(labels, right, strict=True)
    ]
    return sum(1 / rank for rank in ranks if rank) / len(ranks)


def shoppers_answer(truth: Path, rng: random.Random) -> bytes:
    return ("row,chance\n" + "".join(f"{5 * i},{rng.random()}\n" for i in range(12))).encode()


def shoppers_score(submission: Path, truth: Path) -> None:
    rows = strict.table(submission.read_bytes(), {"row": "int64", "chance": "float64"})
    if sorted(row["row"] for row in rows) != [5 * i for i in range(12)]:
        raise strict.Refused(0)


SUBMISSIONS = {
    "booking": Submission("s.csv", "ground_truth.csv", booking_answer, booking_score, "accuracy@4"),
    "recsys2021": Submission("s.csv", "test_truth/part-00000", recsys_answer, recsys_score, "RCE"),
    "sigir_ecom": Submission("s.json", TESTS["rec"][0], sigir_answer, sigir_score, "MRR@20"),
    "online_shoppers": Submission("s.csv", "truth.csv", shoppers_answer, shoppers_score, "AUC"),
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_only_submissions_for_the_truth_are_scored(made: dict[str, Path], tmp_path: Path, name: str) -> None:
    form, given = FORMATS[name], SUBMISSIONS[name]
    if name == "online_shoppers":
        (tmp_path / "truth.csv").write_text("row,bought\n" + "".join(f"{5 * i},{i % 2}\n" for i in range(12)))
    truth = (tmp_path if name == "online_shoppers" else made[name]) / given.truth
    outcomes = Counter[tuple[str, str]]()
    for seed in range(MUTATIONS // len(SUBMISSIONS)):
        rng = random.Random(f"submission {name} {seed}")
        path, good = tmp_path / given.answer, given.make(truth, rng)
        kind, data = ("none", good) if seed == 0 else mutated(good, given.answer, ",", rng)
        path.write_bytes(data)
        told = f"{name} {seed}, {kind}"
        try:
            want, refused = given.oracle(path, truth), False
        except strict.Refused:
            want, refused = None, True
        try:
            got = form.dataset.score(path, truth)
        except DataError as error:
            assert refused, f"{told}: refused without need: {error.message}"
            message = error.message.removeprefix(str(path))
            assert len(message) < 300 and message.isprintable(), f"{told}: {message!r}"
            outcomes[kind, "refused"] += 1
            continue
        assert not refused, f"{told}: scored, {got}"
        assert all(map(math.isfinite, got.values())), f"{told}: {got}"
        assert want is None or got[given.metric] == pytest.approx(want), told
        outcomes[kind, "scored"] += 1
    print(f"\n{name}:", *(f"{kind} {how} {n}" for (kind, how), n in sorted(outcomes.items())), sep="\n  ")
    assert {how for _, how in outcomes} == {"scored", "refused"}
