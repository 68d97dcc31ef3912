"""An independent reader of the official formats, for tests: the rules of docs/data.md as plain loops over the standard library.

The columns are those that the organisers published. It imports nothing from the code that it checks.
"""

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

Faults = set[tuple[str, int]]  # name of the file and line; line 0 stands for the whole file
Row = dict[str, Any]
HEX = set("0123456789abcdefABCDEF")
DIGITS = set("0123456789")
# Columns and kinds as published: WSDM WebTour 2021, RecSys Challenge 2021 and SIGIR eCom 2021 (README files), UCI 468.
STAYS = {
    "user_id": "int64",
    "checkin": "date",
    "checkout": "date",
    "device_class": "str",
    "affiliate_id": "int64",
    "booker_country": "str",
    "utrip_id": "str",
    "city_id": "int64",
    "hotel_country": "str",
}
COUNTERS = ["", "Unnamed: 0", "row_num", "total_rows"]  # more columns of the original zip
BOOKING = {
    "train_set.csv": STAYS,
    "test_set.csv": STAYS,
    "ground_truth.csv": {"utrip_id": "str", "city_id": "int64", "hotel_country": "str"},
}
USER = ["id", "follower_count", "following_count", "is_verified", "account_creation"]
TWEET = [
    *("text_tokens", "hashtags", "tweet_id", "present_media", "present_links", "present_domains"),
    *("tweet_type", "language", "tweet_timestamp"),
    *(f"engaged_with_user_{name}" for name in USER),
    *(f"enaging_user_{name}" for name in USER),
    "engagee_follows_engager",
]
ENGAGED = ["reply_timestamp", "retweet_timestamp", "retweet_with_comment_timestamp", "like_timestamp"]
TWEET_EMPTY = [*TWEET[:2], *TWEET[3:7], *ENGAGED]


def kind_of(column: str) -> str:
    """The kind of a column of the tweets."""
    if column in ("tweet_id", "language") or column.endswith("user_id"):
        return "hash"
    if column.endswith(("count", "creation", "timestamp")):
        return "int64"
    if column.endswith(("verified", "engager")):
        return "bool"
    return "tokens" if column == "text_tokens" else "str"


RECSYS = {
    f"{part}/part-00000": {name: kind_of(name) for name in [*TWEET, *(ENGAGED if part != "test" else [])]}
    for part in ("train", "val", "test", "test_truth")
}
COVEO = {
    "browsing_train.csv": {
        "session_id_hash": "hash64",
        "event_type": "str",
        "product_action": "str",
        "product_sku_hash": "hash64",
        "server_timestamp_epoch_ms": "int64",
        "hashed_url": "hash64",
    },
    "search_train.csv": {
        "session_id_hash": "hash64",
        "query_vector": "vector",
        "clicked_skus_hash": "hashes",
        "product_skus_hash": "hashes",
        "server_timestamp_epoch_ms": "int64",
    },
    "sku_to_content.csv": {
        "product_sku_hash": "hash64",
        "description_vector": "vector",
        "category_hash": "path",
        "image_vector": "vector",
        "price_bucket": "float64",
    },
}
COVEO_EMPTY = {
    "browsing_train.csv": ["product_action", "product_sku_hash", "hashed_url"],
    "search_train.csv": ["query_vector", "clicked_skus_hash", "product_skus_hash"],
    "sku_to_content.csv": ["description_vector", "category_hash", "image_vector", "price_bucket"],
}
ACTIONS = ["detail", "add", "remove", "purchase"]
EVENT = {
    *("query_vector", "clicked_skus_hash", "product_skus_hash", "server_timestamp_epoch_ms", "event_type"),
    *("product_action", "product_sku_hash", "hashed_url", "session_id_hash", "is_search"),
}
SHOPPERS = [
    "Administrative",
    "Administrative_Duration",
    "Informational",
    "Informational_Duration",
    "ProductRelated",
    "ProductRelated_Duration",
    "BounceRates",
    "ExitRates",
    "PageValues",
    "SpecialDay",
    "Month",
    "OperatingSystems",
    "Browser",
    "Region",
    "TrafficType",
    "VisitorType",
    "Weekend",
    "Revenue",
]
FLOATS = {name for name in SHOPPERS if name.endswith(("Duration", "Rates", "Values", "Day"))}
TEXTS = {"Month", "VisitorType", "Weekend", "Revenue"}
SHOPPERS_KINDS = {
    name: "float64" if name in FLOATS else "str" if name in TEXTS else "int64" for name in SHOPPERS
}
SHOPPERS_FILE = {"online_shoppers_intention.csv": SHOPPERS_KINDS}


class Refused(Exception):
    def __init__(self, *lines: int, rows: Sequence[Row] = ()) -> None:
        super().__init__(lines)
        self.lines, self.rows = (
            lines,
            list(rows),
        )  # numbers of the lines with a fault, and the rows without one


def text_of(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(data[: error.start].count(b"\n") + 1) from None


def split(row: str, separator: str, quoted: bool) -> list[str | None]:
    """The fields of a line; None for a line that readers parse differently."""
    if not quoted:
        return [*row.split(separator)]
    fields: list[str | None] = []
    while True:
        if row.startswith('"'):
            inside, closed, rest = row[1:].partition('"')
            if not closed or not inside or (rest and not rest.startswith(separator)):
                return [None]
            fields.append(inside)
            more, row = bool(rest), rest[1:]
        else:
            field, comma, row = row.partition(separator)
            fields.append(None if '"' in field else field)
            more = bool(comma)
        if not more:
            return fields


def lines_of(data: bytes, allowed: str) -> tuple[list[str], list[int]]:
    """The lines without their ends, and the numbers of lines with a fault."""
    pieces = data.split(b"\n")
    ended = pieces[-1] == b""
    if ended:
        pieces.pop()
    lines, bad = [], []
    for number, piece in enumerate(pieces, 1):
        try:
            line = piece.decode("utf-8")
        except UnicodeDecodeError:
            line = "\0"
        if line.endswith("\r") and (number < len(pieces) or ended):
            line = line[:-1]
        if not line or any((ord(c) < 32 or c in "\x7f\ufeff") and c not in allowed for c in line):
            bad.append(number)
        lines.append(line)
    return lines, bad


def whole(text: str, most: int, sign: bool = True) -> bool:
    digits = text[1:] if sign and text.startswith("-") else text
    return 1 <= len(digits) <= most and set(digits) <= DIGITS


def number(text: str, tall: bool) -> bool:
    mantissa, e, exponent = text.replace("E", "e").partition("e")
    integer, point, fraction = mantissa.partition(".")
    if not whole(integer, 15) or (point and not whole(fraction, 30, sign=False)):
        return False
    down = exponent.startswith("-")
    exponent = exponent[1:] if exponent[:1] in ("+", "-") else exponent
    if not e:
        return True
    return whole(exponent, 2, sign=False) and (tall or down or len(exponent) == 1 or exponent[0] in "01")


def hexadecimal(text: str, n: int) -> bool:
    return len(text) == n and set(text) <= HEX


def listed(text: str) -> list[str] | None:
    if len(text) < 2 or text[0] != "[" or text[-1] != "]":
        return None
    return text[1:-1].split(", ") if text != "[]" else []


def value(text: str, kind: str) -> Any:
    """The typed value of a field. Raises ValueError for a field that is not of its kind."""
    good: bool
    match kind:
        case "int64":
            good = whole(text, 18)
        case "date":
            year, month, day = [*text.split("-"), "", ""][:3]
            good = len(text) == 10 and [len(x) for x in (year, month, day)] == [4, 2, 2]
            good = good and set(year + month + day) <= DIGITS and year[:2] in ("19", "20")
        case "str":
            good = text != "" and '"' not in text
        case "bool":
            good = text in ("true", "false")
        case "hash" | "hash64":
            good = hexadecimal(text, 32 if kind == "hash" else 64)
        case "hashes":
            found = listed(text)
            good = found is not None and all(
                len(x) == 66 and x[0] == x[-1] == "'" and hexadecimal(x[1:-1], 64) for x in found
            )
        case "path":
            good = all(hexadecimal(x, 64) for x in text.split("/"))
        case "vector":
            found = listed(text)
            good = bool(found) and len(found or ()) == 50 and all(number(x, tall=False) for x in found or ())
        case "float64":
            good = number(text, tall=True)
        case "bit":
            good = text in ("0", "1")
        case "chance":
            mantissa, e, exponent = text.replace("E", "e").partition("e")
            integer, _, fraction = mantissa.partition(".")
            digits = exponent[1:] if exponent[:1] in ("+", "-") else exponent
            good = (
                set(integer + fraction + digits) <= DIGITS
                and bool(integer or fraction)
                and len(integer) <= 15
            )
            good = good and (not e or 1 <= len(digits) <= 3) and 0 <= float(text) <= 1
        case "tokens":
            found = text.split("\t")
            good = all(whole(x, 6, sign=False) and int(x) < 119_547 and str(int(x)) == x for x in found)
        case _:
            raise AssertionError(kind)
    if not good:
        raise ValueError(text)
    if kind == "date":
        return date.fromisoformat(text)
    if kind in ("int64", "bit"):
        return int(text)
    return float(text) if kind in ("float64", "chance") else text


def table(
    data: bytes,
    kinds: Mapping[str, str],
    *,
    separators: str = ",",
    names: Sequence[str] | None = None,
    empty: Iterable[str] = (),
    optional: Iterable[str] = (),
    rowless: bool = False,
) -> list[Row]:
    """Rows of typed values, each with its `line`. Raises Refused with the lines that have a fault."""
    if names is None and data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    lines, bad = lines_of(data, "" if names is None else f"\t{separators}")
    first, separator, quoted = 1, separators, names is None
    if names is None:
        if not lines:
            raise Refused(0)
        separator = max(separators, key=lines[0].count)
        names = [
            name[1:-1] if len(name) > 1 and name[0] == name[-1] == '"' else name
            for name in lines.pop(0).split(separator)
        ]
        first = 2
        known = set(kinds) | set(optional)
        if set(kinds) - set(names) or set(names) - known or len(set(names)) < len(names):
            raise Refused(1, *bad)
    if not lines and not rowless:
        raise Refused(0)
    rows, wrong = [], list(bad)
    for at, line in enumerate(lines, first):
        if at in bad:
            continue
        fields = split(line, separator, quoted)
        row: Row = {"line": at}
        try:
            if len(fields) != len(names) or None in fields:
                raise ValueError(line)
            for name, field in zip(names, fields, strict=True):
                if name in kinds:
                    row[name] = None if field == "" and name in empty else value(str(field), kinds[name])
        except ValueError:
            wrong.append(at)
        else:
            rows.append(row)
    if wrong:
        raise Refused(*wrong, rows=rows)
    return rows


class Folder:
    """The files of a data set: `tables` by file name, or `faults`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tables, self.faults = folder, dict[str, list[Any]](), Faults()

    def content(self, name: str) -> bytes:
        """Reads one file, plain or gzipped."""
        path = self.folder / name
        return (
            path.read_bytes()
            if path.exists()
            else gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
        )

    def read(self, name: str, kinds: Mapping[str, str], **form: Any) -> list[Row]:
        try:
            self.tables[name] = table(self.content(name), kinds, **form)
        except Refused as refused:
            self.faults |= {(name, line) for line in refused.lines}
            self.tables[name] = refused.rows
        return self.tables[name]

    def need(self, name: str, good: bool, line: int = 0) -> None:
        if not good:
            self.faults.add((name, line))


def read_booking(folder: Path) -> Folder:
    f = Folder(folder)
    train = f.read("train_set.csv", STAYS, optional=COUNTERS)
    test = f.read("test_set.csv", STAYS, optional=COUNTERS, empty=["hotel_country"])
    truth = f.read("ground_truth.csv", BOOKING["ground_truth.csv"])
    for name, rows, least in (("train_set.csv", train, 1), ("test_set.csv", test, 0)):
        seen = dict[tuple[Any, ...], int]()
        for row in rows:
            line = row["line"]
            f.need(name, row["checkout"] >= row["checkin"], line)
            f.need(name, row["city_id"] >= least, line)
            f.need(name, name[1] == "r" or (row["city_id"] == 0) == (row["hotel_country"] is None), line)
            key = tuple(row[column] for column in STAYS)
            f.need(name, key not in seen, line)
            seen[key] = line
    if f.faults:
        return f
    trips = dict[str, list[Row]]()
    for row in test:
        trips.setdefault(row["utrip_id"], []).append(row)
    for stays in trips.values():
        hidden = [row for row in stays if row["city_id"] == 0]
        last = max(row["checkin"] for row in stays)
        f.need("test_set.csv", len(hidden) == 1 and hidden[0]["checkin"] == last)
    f.need("ground_truth.csv", sorted(row["utrip_id"] for row in truth) == sorted(trips))
    return f


def read_recsys(folder: Path) -> Folder:
    f = Folder(folder)
    for name, kinds in RECSYS.items():
        rows = f.read(name, kinds, separators="\x01", names=list(kinds), empty=TWEET_EMPTY)
        for row in rows:
            f.need(name, row["tweet_type"] in (None, "TopLevel", "Retweet", "Quote", "Reply"), row["line"])
            media = (row["present_media"] or "Photo").split("\t")
            f.need(name, set(media) <= {"Photo", "Video", "GIF"}, row["line"])
    if not f.faults:
        f.need("", len(f.tables["test/part-00000"]) == len(f.tables["test_truth/part-00000"]))
    return f


def read_shoppers(folder: Path) -> Folder:
    f = Folder(folder)
    name = "online_shoppers_intention.csv"
    for row in f.read(name, SHOPPERS_KINDS, separators=";,"):
        f.need(name, {row["Weekend"], row["Revenue"]} <= {"TRUE", "FALSE"}, row["line"])
    return f


def read_sigir(folder: Path) -> Folder:
    f = Folder(folder)
    for name, kinds in COVEO.items():
        rows = f.read(name, kinds, empty=COVEO_EMPTY[name], rowless=name == "search_train.csv")
        for row in rows if name == "sku_to_content.csv" else ():
            f.need(name, 0 <= (row["price_bucket"] or 0) <= 10, row["line"])
        for row in rows if name == "browsing_train.csv" else ():
            product = row["event_type"] == "event_product"
            good = product or row["event_type"] == "pageview"
            good = good and row["product_action"] in (None, *ACTIONS)
            good = good and not (product and None in (row["product_action"], row["product_sku_hash"]))
            f.need(name, good, row["line"])
    for name in ("rec_test_phase_2.json", "intention_test_phase_2.json"):
        try:
            f.tables[name] = queries(f.content(name), cart=name.startswith("intention"))
        except (Refused, ValueError, TypeError, KeyError, AssertionError, RecursionError):
            f.need(name, False)
            f.tables[name] = []
    return f


# ---- JSON ---------------------------------------------------------------------------------------------------------


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert max(Counter(key for key, _ in pairs).values(), default=1) == 1
    return dict(pairs)


def refuse(constant: str) -> Any:
    raise ValueError(constant)


def queries(data: bytes, cart: bool) -> list[Any]:
    """The queries of a test file. Raises some exception for a file off the schema."""
    found = json.loads(text_of(data), object_pairs_hook=unique, parse_constant=refuse)
    assert type(found) is list and found
    for query in found:
        assert type(query) is dict and type(query["query"]) is list and query["query"]
        for event in query["query"]:
            check_event(event)
        assert len({event["session_id_hash"] for event in query["query"]}) == 1
        if cart:
            assert type(query["nb_after_add"]) is int and query["nb_after_add"] in (0, 2, 4, 6, 8, 10)
        if "label" in query and cart:
            assert type(query["label"]) is int and query["label"] in (0, 1)
        elif "label" in query:
            assert type(query["label"]) is list and all(is_hash(x) for x in query["label"])
    assert len({"label" in query for query in found}) < 2
    return found


def check_event(event: Any) -> None:
    assert type(event) is dict
    assert EVENT - {"hashed_url"} <= set(event) <= EVENT
    vector = event["query_vector"]
    if vector is not None:
        assert type(vector) is list and len(vector) == 50
        assert all(type(x) in (int, float) and abs(x) < 1e35 for x in vector)
    for name in ("clicked_skus_hash", "product_skus_hash"):
        assert event[name] is None or (type(event[name]) is list and all(is_hash(x) for x in event[name]))
    assert type(event["server_timestamp_epoch_ms"]) is int
    assert abs(event["server_timestamp_epoch_ms"]) < 10**18
    assert event["event_type"] in (None, "pageview", "event_product")
    assert event["product_action"] in (None, "", *ACTIONS)
    assert event["product_sku_hash"] is None or is_hash(event["product_sku_hash"])
    assert event.get("hashed_url") is None or is_hash(event["hashed_url"])
    assert is_hash(event["session_id_hash"])
    assert type(event["is_search"]) is bool


def is_hash(value: Any) -> bool:
    return type(value) is str and hexadecimal(value, 64)
