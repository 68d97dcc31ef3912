"""Random changes of official files and submissions: of bytes, lines, fields, columns, a JSON tree, or the whole file."""

import gzip
import json
import random
import re
from typing import Any

BYTES = (
    *(b'"', b'""', b"\0", b"\r", b"\n", b"\r\n", b"\n\n", b",", b";", b"\t", b"\x01", b" ", b"-", b".", b"e"),
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\x1a", b"\x7f", b"\\", b"'"),
    *(b"[", b"]", b"{", b"}", b":", b"\n\r", b"\r\r\n", b"\x0b", b"\x0c", b"+", b"_"),
    *(x.encode() for x in ("٣", "１", "\u2028", "\x85", "\xa0", "é", "\ufeff", "\u200b", "0", "9")),
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
        "-" + "9" * 18,
        "9" * 19,
        str(2**63 - 1),
        str(2**63),
        str(-(2**63)),
        str(2**64),
        "1e3",
        "1E+03",
        "1e-99",
        "1e99",
        "0." + "1" * 30,
        "0." + "1" * 31,
        "1" * 15 + ".5",
        "1" * 16 + ".5",
        "0b1",
        "1,5",
        "5\u200b",
        "−5",
        "½",
        "²",
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
    """Changes the whole file: its line ends, the last line end, a byte order mark, the separator."""
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
    """Changes a value or a key of the JSON tree, or the text around it."""
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
    if rng.random() < 0.2:
        return json.dumps(queries_changed(tree, rng)).encode()
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


def queries_changed(tree: list[Any], rng: random.Random) -> Any:
    """Changes the list of queries: another order, one query less, one twice, or nested in another list."""
    at, other = rng.randrange(len(tree)), rng.randrange(len(tree))
    match rng.randrange(5):
        case 0:
            tree[at], tree[other] = tree[other], tree[at]
        case 1:
            del tree[at]
        case 2:
            tree.insert(other, tree[at])
        case 3:
            return rng.choice([[tree], {"queries": tree}, tree[at], [], None, "x"])
        case _:
            tree[at]["label"] = rng.choice(
                [[*ODD], [ODD[at]], [["a"]], [True], [None], ["a"] * 30, 0.0, 1.0, True, "1", None]
            )
    return tree


def columns_changed(data: bytes, rng: random.Random, separator: str) -> bytes:
    """Changes a column in every line, or only in the header. Files without a header have columns too."""
    lines = data.decode().split("\n")
    rows = [line.split(separator) for line in lines if line]
    width = len(rows[0])
    at, other = rng.randrange(width), rng.randrange(width)
    match rng.randrange(8):
        case 0:  # all columns in another order
            order = rng.sample(range(width), width)
            rows = [[row[i] for i in order] if len(row) == width else row for row in rows]
        case 1:  # two columns swapped
            rows = [[row[{at: other, other: at}.get(i, i)] for i in range(len(row))] for row in rows]
        case 2:  # one column repeated
            rows = [[*row, row[at]] for row in rows]
        case 3:
            rows = [row[:at] + row[at + 1 :] for row in rows]
        case 4:  # one more column
            rows = [[*row, "more" if number == 0 else "1"] for number, row in enumerate(rows)]
        case 5:  # an empty column, from a separator at the end of each line
            rows = [[*row, ""] for row in rows]
        case 6:
            rows[0][at] = rng.choice(
                [rows[0][other], f'"{rows[0][at]}"', rows[0][at].upper(), f" {rows[0][at]}", ""]
            )
        case _:
            rows = [[f'"{field}"' for field in row] for row in rows]
    return "".join(separator.join(row) + "\n" for row in rows).encode()


def whole_changed(data: bytes, rng: random.Random) -> bytes:
    """Replaces the file: empty, only the first line, twice its content, another encoding, compressed, an endless line, or cut
    within a character."""
    lines = data.splitlines(keepends=True)
    match rng.randrange(12):
        case 0:
            return b""
        case 1:
            return lines[0]
        case 2:
            return data + data
        case 3:
            return data.decode(errors="replace").encode(
                rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
            )
        case 4:
            return gzip.compress(data)
        case 5:
            return b"PAR1\x15\x04\x15\x80" + data + b"PAR1"
        case 6:
            return b"\x28\xb5\x2f\xfd\x24" + data
        case 7:
            at = rng.randrange(len(data) + 1)
            return data[:at] + rng.choice([b"9", b"x", b" ", b'"', b","]) * 100_000 + data[at:]
        case 8:
            return data + rng.choice(["é", "ل", "😀"]).encode()[:-1]
        case 9:
            at = rng.randrange(len(data))
            return data[:at] + rng.choice(["é", "ل", "😀"]).encode()[:-1] + data[at:]
        case 10:
            return rng.choice([b"\n", b"\r\n", b" ", b"\0" * 512, b"\n" * 100])
        case _:
            return b"".join([lines[0], *lines[:0:-1]])


TEXT = (replaced, inserted, deleted, truncated, lines_changed, ends_changed, whole_changed)


def mutated(data: bytes, name: str, separator: str, rng: random.Random) -> tuple[str, bytes]:
    """The kind of a random mutation, and the changed content of a file."""
    if rng.random() < 0.5:
        if name.endswith(".json"):
            return "json_changed", json_changed(data, rng)
        if rng.random() < 0.2:
            return "columns_changed", columns_changed(data, rng, separator)
        return "field_changed", field_changed(data, rng, separator)
    change = rng.choice(TEXT)
    changed = change(data, rng)
    if rng.random() < 0.2:  # a second mutation
        changed = rng.choice(TEXT)(changed or b"\n", rng)
    return change.__name__, changed
